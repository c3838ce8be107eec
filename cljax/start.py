"""What a run changes about a method: it reads files, begins with a network that was trained before, counts its steps.

A path with `{seed}` in it is one file for each seed, `{seed%3}` three files that seeds take in turn.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from cljax import artifacts
from cljax.errors import ConfigError
from cljax.types import Array, Method, Phase, Spec, State

START = "start"  # the part that `begun_from` reads
SEED = re.compile(r"\{seed(?:%([1-9]\d*))?\}")

FIT = "fit"  # the phase that `steps_per_task` counts

MakeFn = Callable[[Mapping[str, Any]], Method]  # numbers of one row of the seed axis, traced or not -> the method
Parts = dict[str, dict[str, np.ndarray]]  # part -> its leaves by their paths; with a leading [S] where seeds differ


def path_of(path: str, seed: int) -> str:
  """The path for one seed."""
  return SEED.sub(lambda found: str(seed % int(found[1]) if found[1] else seed), path)


def read_parts(method: Method, seeds: Sequence[int]) -> tuple[Parts, dict[str, int | None]]:
  """(the leaves of every file that the method reads, by part; the axis of the seeds of each part, 0 or None).

  Raises:
    ConfigError: a file is missing or damaged, or does not fit the method's state or those of other seeds.
  """
  parts: Parts = {}
  axes: dict[str, int | None] = {}
  own = dict.fromkeys(seeds)
  files: dict[int, dict[str, Any]] = {seed: {} for seed in own}
  for name, path in method.reads.items():
    axes[name] = 0 if SEED.search(path) else None
    if axes[name] is None:
      parts[name] = artifacts.read(path)
    for seed in own:
      files[seed][name] = artifacts.read(path_of(path, seed)) if axes[name] == 0 else parts[name]
  for seed in own:
    if bad := [leaf for leaf, array in files[seed].get(START, {}).items() if not np.isfinite(array).all()]:
      raise ConfigError(f"{path_of(method.reads[START], seed)}: {bad[0]} holds NaN or infinity: its run had diverged")
  if files[seeds[0]]:
    for seed in own if 0 in axes.values() else seeds[:1]:
      jax.eval_shape(lambda key, found: method.load(method.init(key), found), jax.random.key(0), files[seed])
  for name in (name for name, axis in axes.items() if axis == 0):
    first = files[seeds[0]][name]
    for seed in own:
      if {leaf: each.shape for leaf, each in files[seed][name].items()} != {k: v.shape for k, v in first.items()}:
        raise ConfigError(
          f"{method.reads[name]}: the files of seeds {seeds[0]} and {seed} hold arrays of other names or shapes"
        )
    parts[name] = {leaf: np.stack([files[seed][name][leaf] for seed in seeds]) for leaf in first}
  return parts, axes


def begun_from(method: Method, path: str) -> Method:
  """The method whose network begins as the `params` of a file say; '' is the method as it is.

  Its state must hold them as `params`, as that of every method does that trains one network from task to task; see
  `check_start`.
  """
  if not path:
    return method

  def load(state: State, parts: Mapping[str, Mapping[str, Array]]) -> State:
    state = method.load(state, {name: part for name, part in parts.items() if name != START})
    return state.replace(params=artifacts.fill(state.params, parts[START], path))

  return method._replace(load=load, reads={**method.reads, START: path})


def check_start(method: Method, path: str, spec: Spec) -> None:
  """
  Raises:
    ConfigError: a network to begin with, and a method that does not answer by the `params` of its state.
  """
  if not path:
    return
  if all(phase.joint for phase in method.phases):
    raise ConfigError(f"config.start_from={path!r}: a method that learns all tasks at once begins anew; leave it out")
  state = jax.eval_shape(method.init, jax.random.key(0))
  x, slot = np.zeros((1, *spec.x_shape), np.float32), np.zeros(1, np.int32)
  leaves, structure = jax.tree_util.tree_flatten_with_path(state)
  traced = jax.make_jaxpr(lambda own: method.apply(jax.tree.unflatten(structure, own), x, slot).logits)(
    [leaf for _, leaf in leaves]
  )
  params = {var for (place, _), var in zip(leaves, traced.jaxpr.invars, strict=True) if str(place[0]) == ".params"}
  asked = {var for eqn in traced.jaxpr.eqns for var in eqn.invars if not isinstance(var, Literal)}
  if not params & asked:
    raise ConfigError(
      f"config.start_from={path!r} is for methods that train one network from task to task, and this one answers by "
      "others than the `params` of its state; leave it out"
    )


def counted(method: Method, steps: int) -> Method:
  """The method with so many steps in its phase `fit`, in place of epochs; 0 is the method as it is.

  Raises:
    ConfigError: no such phase.
  """
  if not steps:
    return method
  if FIT not in (names := [phase.name for phase in method.phases]):
    raise ConfigError(
      f"config.steps_per_task={steps} is for methods with a phase `fit`, and this one has {', '.join(names)}: set it "
      "to 0, and count epochs by config.method"
    )

  def of(phase: Phase) -> Phase:
    """A phase that counts steps already, as `config.debug` leaves them, takes no more of them."""
    return phase._replace(epochs=0, steps=min(phase.steps or steps, steps)) if phase.name == FIT else phase

  return method._replace(phases=tuple(map(of, method.phases)))


def adapted(method: Method | MakeFn, path: str, steps: int) -> Method | MakeFn:
  """The method, or what makes it, with `begun_from` and `counted`."""
  if isinstance(method, Method):
    return counted(begun_from(method, path), steps)
  if not (path or steps):
    return method
  return lambda hyper: counted(begun_from(method(hyper), path), steps)


def check_given(given: int, spec: Spec, oracle: bool) -> None:
  """
  Raises:
    ConfigError: tasks that are taken as learnt where they cannot be.
  """
  if given >= spec.T:
    raise ConfigError(f"config.given_tasks={given} leaves nothing to learn of {spec.T} tasks; use at most {spec.T - 1}")
  if given and (oracle or not spec.boundaries):
    raise ConfigError(
      f"config.given_tasks={given}: a method that learns all tasks at once, or a stream that hides its boundaries "
      "(config.stream.boundaries=False), has no tasks that come before; set it to 0"
    )
