"""Meta-training from a config to files: theta by seeds, one after the other, in a work dir as any run's.

The same command on the same work dir goes on where the last checkpoint stands, bit for bit.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from cljax import artifacts
from cljax.callbacks import check_given
from cljax.checkpoint import Checkpoints
from cljax.data.bank import Source
from cljax.drive import Stopped
from cljax.errors import ConfigError
from cljax.files import plain, tidy, write_atomically, write_sealed
from cljax.journal import Noted
from cljax.keys import INIT, META
from cljax.lock import locked
from cljax.meta.episodes import Episodes, check_classes, table_of
from cljax.meta.outer import Outer, Place, Training, compiled_segments
from cljax.meta.query import Query
from cljax.meta.result import Progress, progress_of, read_result, result_of
from cljax.meta.settings import Data, Settings, settings_of, with_defaults
from cljax.meta.start import files_of, shapes_of, source_of, starts_of
from cljax.meta.unroll import Pair
from cljax.monitor import Monitor, compile_seconds
from cljax.named import own_files
from cljax.nets.heads import Heads
from cljax.nets.modes import trains_apart
from cljax.paths import located
from cljax.pieces.neurons import tensors_of_net
from cljax.pieces.rule import init_theta, part
from cljax.report import plots
from cljax.report.training import training_figures
from cljax.types import Key, PyTree
from cljax.workdir import check_claim, claim, environment, identity, note_environment

RESULT = "meta.json"


def train(
  config: Mapping[str, Any],
  workdir: str | epath.Path,
  *,
  data_dir: str | None = None,
  overrides: Mapping[str, Any] | None = None,
  stop_asked: Callable[[], bool] = lambda: False,
  quiet: bool = False,
) -> dict[str, Any]:
  """Trains a rule for each seed; what meta.json says.

  Writes parts/seed_N/theta.npz, the rule, if one is trained, parts/seed_N/start.npz, the network to begin with, beside
  it what else its method leaves, figures/training.png and meta.json.

  Args:
    config: see `meta.settings`.
    data_dir, overrides, stop_asked, quiet: see `cljax.run.train`.

  Raises:
    ConfigError: a mistake in the config, the data or the work dir, or numbers that are not finite.
    OSError: the work dir cannot be written; what was saved before stays readable.
    Stopped: a stop was asked for, and everything up to here is saved.
  """
  check_given(stop_asked, None, overrides or {}, quiet)
  settings, folder, full = settings_of(config), located(workdir), with_defaults(config)
  check_claim(folder, full, with_defaults)
  if (folder / RESULT).exists():
    return read_result(folder / RESULT)
  with locked(folder, stop_asked) as stop_asked, jax.default_matmul_precision("highest"):
    claim(folder, full, overrides or {}, with_defaults)
    if (folder / RESULT).exists():  # another process has just ended it
      return read_result(folder / RESULT)
    tidy([folder, folder / "figures", *folder.glob("checkpoints/*"), *folder.glob("parts/*")])
    files = {**own_files(full), **files_of(settings)}
    note_environment(folder, environment(files))
    source = source_of(settings.data, data_dir)
    outer = outer_of(settings, source)
    starts = starts_of(settings, source, outer.head, folder, stop_asked, quiet)
    if settings.trains == "nothing":
      trained = untrained(starts, folder)
    else:
      whose = identity(full, source.hash)
      trained = train_seeds(settings, outer, source, starts, folder, whose, stop_asked, quiet)
    result = plain(result_of(full, settings, trained, source.hash, files))
    plots.save(folder / "figures", training_figures(result))
    write_sealed(folder / RESULT, result)
  return result


def outer_of(settings: Settings, source: Source) -> Outer | Query:
  """The outer loop of a config: of a rule, or of the network to begin with.

  Raises:
    ConfigError: classes that make no episodes, or a net that the rule has no form for.
  """
  data, net, inner = settings.data, settings.net, settings.inner
  count = table_of(source.train.y, data.half)[1]
  check_classes(data.old, data.new, data.tasks + 1, data.classes, count)
  if hasattr(net, "experts"):
    raise ConfigError("a learned rule trains a net without gates: set config.net.name='mlp'")
  variables: Any = shapes_of(net, source.train.x.shape[1:])
  if set(variables) != {"params"} or trains_apart(net):
    raise ConfigError(
      "a teacher and a student carry parameters alone: take a net without dropout and running statistics"
    )
  called, tensors = tensors_of_net(net, variables, source.train.x.shape[1:])
  head = next(name for name, layer in called.items() if isinstance(layer.module, Heads))
  moves = settings.length.whole * (settings.curriculum.truncation if inner.update == "step" else 1)
  own = settings.outer.transform(moves), head, data.tasks + 1, data.classes
  if settings.trains == "start":
    return Query(net, inner, *own)
  return Outer(Pair(net, called, tensors, settings.rule, inner), settings.curriculum, *own)


def episodes_of(data: Data, source: Source) -> Episodes:
  """What the episodes of all seeds are drawn from, on the device, but for their starts: of old classes all rows, of new
  ones the half."""
  (rows, count), (half, half_count) = (table_of(source.train.y, one) for one in ("all", data.half))
  rows, count = rows.copy(), count.copy()
  new = np.array(data.new)
  rows[new, : half.shape[1]], count[new] = half[new], half_count[new]
  old = np.array(data.old, np.int32)
  found = Episodes(source.train, rows, count, old, new.astype(np.int32), starts=None)
  return jax.tree.map(jnp.asarray, found)


def untrained(starts: Mapping[int, tuple[PyTree, PyTree]], folder: epath.Path) -> dict[int, Any]:
  """What `train_seeds` gives where no episode is run: the networks to begin with, and what their method leaves beside
  them, are all."""
  for seed, (_, kept) in starts.items():
    own = artifacts.folder_of(folder, seed)
    artifacts.write(own, {"start": kept})
    for path in artifacts.folder_of(folder / "start", seed).glob("*.npz"):  # of one network a seed, named as it is
      if path.name != "start.npz":
        write_atomically(own / path.name, path.read_bytes())
  return {seed: (Progress(finished=True), {name: 0.0 for name in Place._fields}) for seed in starts}


def train_seeds(
  settings: Settings,
  outer: Outer | Query,
  source: Source,
  starts: Mapping[int, tuple[PyTree, PyTree]],
  folder: epath.Path,
  whose: Mapping[str, Any],
  stop_asked: Callable[[], bool],
  quiet: bool,
) -> dict[int, tuple[Progress, dict[str, float]]]:
  """{seed: (its progress, what its place told at the end)}, after the seeds' trainings and their files."""
  begun = {}
  shared = episodes_of(settings.data, source)
  start = jax.jit(lambda key, episodes: begin(settings, outer, key, episodes))
  for seed in settings.seeds:
    key = jax.random.fold_in(jax.random.key(seed), META)
    episodes = shared._replace(starts=jax.tree.map(jnp.asarray, starts[seed][0]))
    checkpoints = Checkpoints(folder / "checkpoints" / f"seed_{seed}")
    shapes = jax.eval_shape(start, key, episodes)
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    found = checkpoints.restore(like, lambda cursor: progress_of(cursor, source.hash))
    progress, noted = Progress(), Noted()
    if found is None:
      state = start(key, episodes)
    else:
      state, cursor = jax.device_put(found[0]), found[1]
      progress, noted = progress_of(cursor, source.hash), Noted.of(cursor["lines"], cursor.get("metrics"))
    begun[seed] = Trainee(seed, key, episodes, checkpoints, state, progress, noted)
  done = sum(one.progress.segment for one in begun.values())
  noted = max((one.noted for one in begun.values()), key=lambda noted: noted.lines)
  total = len(begun) * settings.length.whole
  monitor = Monitor(folder, total, done, noted, "meta", quiet)
  runs: dict[int, Callable[..., Any]] = {}
  ended = {}
  try:
    for seed, one in begun.items():
      state, progress = Loop(settings, outer, monitor, stop_asked, runs, whose).drive(one)
      theta, alpha = state.theta, settings.inner.alpha
      parts = {"start": theta} if isinstance(outer, Query) else {"theta": part(theta, settings.rule, alpha)}
      artifacts.write(artifacts.folder_of(folder, seed), {"start": starts[seed][1], **parts})
      ended[seed] = (progress, {name: float(value) for name, value in state.place._asdict().items()})
  finally:
    monitor.close()
    for one in begun.values():
      one.checkpoints.close()
  return ended


def begin(settings: Settings, outer: Outer | Query, key: Key, episodes: Episodes) -> Training:
  """Before the first segment of a seed."""
  if isinstance(outer, Query):
    return outer.begin(key, jax.tree.map(lambda leaf: leaf[0], episodes.starts), episodes)
  start = jax.random.fold_in(key, INIT)
  return outer.begin(key, init_theta(start, outer.pair.tensors, settings.rule, settings.length.scale), episodes)


class Trainee(NamedTuple):
  """One seed's training, as it stands when the process begins."""

  seed: int
  key: Key
  episodes: Episodes
  checkpoints: Checkpoints
  state: Training
  progress: Progress
  noted: Noted


class Loop(NamedTuple):
  """The loop on the host: whole calls, one after the other."""

  settings: Settings
  outer: Outer | Query
  monitor: Monitor
  stop_asked: Callable[[], bool]
  runs: dict[int, Callable[..., Any]]  # S -> compiled segments
  whose: Mapping[str, Any] = {}  # what the cursor of each checkpoint tells beside the progress

  def drive(self, one: Trainee) -> tuple[Training, Progress]:
    """Trains one seed to its end, saving on the way.

    Raises:
      ConfigError: numbers that are not finite.
      Stopped: a stop was asked for, and everything up to here is saved.
    """
    state, progress, length = one.state, one.progress, self.settings.length
    while not progress.finished:
      state, progress = self.call(one, state, progress)
      calls = progress.segment // length.call
      stopping = self.stop_asked()
      if progress.finished or stopping or calls % length.checkpoint_every_calls == 0:
        self.monitor.flush()
        noted = self.monitor.noted()
        told = {**progress._asdict(), "lines": noted.lines, "metrics": noted.proof(), **self.whose}
        one.checkpoints.save(jax.device_get(state), told)
      if stopping and not progress.finished:
        raise Stopped
    return state, progress

  def call(self, one: Trainee, state: Training, progress: Progress) -> tuple[Training, Progress]:
    """One compiled call, and what is told of it."""
    length, first = self.settings.length, progress.segment
    S = self.settings.curriculum.truncation_at(int(state.place.episode))
    if S not in self.runs:
      self.runs[S] = compiled_segments(self.outer, S, length.call)
    began, compiling = time.monotonic(), compile_seconds()
    state, told = self.runs[S](one.key, one.episodes, state, jnp.int32(first))
    told = jax.device_get(told)
    seconds = time.monotonic() - began - (compile_seconds() - compiling)
    self.check(told, first)
    for n in range(-first % length.log_every, length.call, length.log_every):
      row = plain({name: value[n] for name, value in told.items()})
      self.monitor.write({"event": "segment", "seed": one.seed, "segment": first + n, "truncation": S, **row})
    means = {name: np.nanmean(told[name], keepdims=True) for name in ("loss", "threshold", "step", "cell")}
    self.monitor.steps(length.call, seconds, f"seed {one.seed}, episode {int(told['episode'][-1])}", means)
    after, episode = first + length.call, int(state.place.episode)
    point = tuple(float(np.nanmean(told[name])) for name in ("loss", "threshold")) + (S, episode)
    return state, Progress(
      after,
      progress.inner_steps + S * length.call,
      after >= length.whole or bool(length.episodes and episode >= length.episodes),
      progress.seconds + seconds,
      (*progress.curve, (after, *point)),
    )

  def check(self, told: Mapping[str, np.ndarray], first: int) -> None:
    """Warns of episodes that never live, stops where numbers are not finite.

    Raises:
      ConfigError: names the option to change.
    """
    rule, bad = self.settings.rule, ~told["finite"]
    where = f"segment {first + int(bad.argmax())}"
    if bad.any() and (rule.form, rule.cell) == ("lstm", "relu"):
      raise ConfigError(
        f"config.rule.cell='relu' ended in numbers that are not finite at {where}, as literal ReLU cells do; "
        "set config.rule.cell='tanh'"
      )
    if bad.all():
      raise ConfigError(
        f"no segment from {where} on is finite: lower config.inner.alpha={self.settings.inner.alpha:g} or "
        f"config.outer.lr={self.settings.outer.lr:g}"
      )
    if bad.any():
      logging.warning("%d segments from %s on were not finite: no update, a new episode", bad.sum(), where)
    if told["patient"].any():
      curriculum = self.settings.curriculum
      logging.warning(
        "%d episodes in a row ended in their first segment, so one lives to its end: raise "
        "config.curriculum.threshold=%g",
        curriculum.patience,
        curriculum.threshold,
      )
