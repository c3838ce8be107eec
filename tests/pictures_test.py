"""How pictures are shown: normalised by what was trained on, flipped and cropped anew at each visit of a step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax.config import complete, default
from cljax.data import STREAMS, from_arrays
from cljax.data.arrays import axes_of
from cljax.data.bank import Source
from cljax.data.pictures import Pictures, dressed, one_for_all, type_shown
from cljax.data.sample import decode, fetch, some_rows, split_batch, view_at, warped_rows
from cljax.data.streams import permuted, rotated, split, stack
from cljax.data.subsets import subsets
from cljax.data.warp import Dressed, NoisyChannels, Permutation, Standardisation
from cljax.declared import fields
from cljax.errors import ConfigError
from cljax.loops import fit_chunk
from cljax.pieces import replay
from cljax.predict import Predictor, normalisation_of, told_of
from cljax.recipe import build_stream
from cljax.types import Bank, Block, Clock, Phase, Place

KEY = jax.random.key(0)
SHAPE, ROWS = (6, 5, 3), 48
DRAW = np.random.default_rng(0)


def source(shape=SHAPE) -> Source:
  """Every pixel of every picture has a value of its own kind, so that what was done to one can be read off it."""
  x, test = (DRAW.integers(1, 256, (ROWS, *shape)).astype(np.uint8) for _ in range(2))
  y = (np.arange(ROWS) % 4).astype(np.int32)
  return Source(Bank(x, y), Bank(test, y), np.arange(4, dtype=np.int32), "toy")


SOURCE = source()


@flax.struct.dataclass
class Seen:
  """What steps have seen."""

  x: Any  # [steps, W, ...]
  row: Any  # [steps, W]
  memory: Any


def recording(block: int = 0) -> Phase:
  """A phase of four current and three replayed rows that learns nothing and keeps what it sees."""

  def step(key, state, batch, clock, view):
    again = fetch(view, batch.place) if view.visit is not None else batch  # as methods do that fetch rows by themselves
    x, row = batch.x + 0 * again.x, batch.place.row
    same = (batch.x == again.x).all()
    return state.replace(x=state.x.at[clock.total].set(x), row=state.row.at[clock.total].set(row)), {"loss": 1.0 * same}

  def steps_at_once(keys, state, batch, clocks, view):
    x, row = state.x.at[clocks.total].set(batch.x), state.row.at[clocks.total].set(batch.place.row)
    return state.replace(x=x, row=row), {"loss": jnp.ones(block)}

  own = Block(block, steps_at_once) if block else None
  return Phase("fit", 4, step, epochs=9, plan=replay.reservoir(3, 8), block=own)


def seen_by(stream, steps, ways_to_cut, block=0) -> list[tuple[Seen, np.ndarray]]:
  """What so many steps of the second task see, cut into chunks in some ways, and the losses."""
  view = view_at(jax.tree.map(jnp.asarray, stream), jnp.int32(1), 2)
  phase, per_epoch, found = recording(block), -(-int(stream.tasks.train.count[1]) // 4), []
  chunk = jax.jit(lambda state, clock, stop: fit_chunk(phase, 12, KEY, state, view, clock, stop))
  for cuts in ways_to_cut:
    memory = replay.Memory(Place(jnp.zeros(8, jnp.int32), jnp.arange(8)), jnp.int32(8))  # rows of the first task
    state = Seen(jnp.zeros((steps, 7, *stream.bank.x.shape[1:])), jnp.zeros((steps, 7), jnp.int32), memory)
    losses, begun = [], 0
    for count in cuts:
      clock = Clock(*map(jnp.int32, (begun // per_epoch, begun % per_epoch, per_epoch, begun)))
      state, info = chunk(state, clock, jnp.int32(count))
      losses.append(np.asarray(info["loss"])[:count])
      begun += count
    found.append((jax.tree.map(np.asarray, state), np.concatenate(losses)))
  return found


def shown_at(stream, rows, visit=KEY, t=1, **of_view) -> np.ndarray:
  """The pictures of bank rows [N] that a step fetches in a task."""
  view = view_at(jax.tree.map(jnp.asarray, stream), t if t is None else jnp.int32(t), 2)._replace(visit=visit)
  task = jnp.arange(len(rows)) if t is None else jnp.full(len(rows), t)
  return np.asarray(fetch(view, Place(task, jnp.asarray(rows))).x)


def ways(picture: np.ndarray, crop: int, flip: bool) -> dict[tuple[int, int, bool], np.ndarray]:
  """Everything that may become of a picture."""
  framed = np.pad(picture, ((crop, crop), (crop, crop), (0, 0)))
  found = {}
  for i in range(2 * crop + 1):
    for j in range(2 * crop + 1):
      piece = framed[i : i + picture.shape[0], j : j + picture.shape[1]]
      found |= {(i - crop, j - crop, False): piece} | ({(i - crop, j - crop, True): piece[:, ::-1]} if flip else {})
  return found


def way_of(x, row, crop, flip) -> tuple[int, int, bool]:
  """Which of the ways the picture of a bank row took; it must have taken one."""
  possible = ways(SOURCE.train.x[row] / 255, crop, flip)
  return next(way for way, its in possible.items() if abs(its - x).max() < 1e-6)


def test_each_visit_draws_anew_for_replayed_rows_too_and_any_cutting_gives_the_same_bits():
  _, stream = split(SOURCE, KEY, tasks=2, flip=True, crop=1)
  (seen, losses), (again, _) = seen_by(stream, 36, ((12, 12, 12), (5, 1, 12, 12, 6)))
  assert (losses == 1).all(), "rows that a step fetches by itself look as in its batch"
  took: dict[int, list] = {}
  for columns in (slice(0, 4), slice(4, 7)):  # current, replayed
    rows = seen.row[:, columns].ravel()
    flat = [way_of(x, r, 1, True) for x, r in zip(seen.x[:, columns].reshape(-1, *SHAPE), rows, strict=True)]
    assert {way[:2] for way in flat} == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert 0.3 < np.mean([way[2] for way in flat]) < 0.7
    for row, way in zip(rows, flat, strict=True):
      took.setdefault(int(row), []).append(way)
  assert all(len(set(found)) > 1 for found in took.values() if len(found) > 4)
  ((block, _),) = seen_by(stream, 36, ((12, 12, 12),), block=4)
  for other in (again, block):
    np.testing.assert_array_equal(seen.row, other.row)
    np.testing.assert_array_equal(seen.x, other.x)


@pytest.mark.parametrize(("options", "crop", "flip"), [({"flip": True}, 0, True), ({"crop": 2}, 2, False)])
def test_one_without_the_other(options, crop, flip):
  _, stream = split(SOURCE, KEY, tasks=2, **options)
  rows = stream.tasks.train.idx[1, :20]
  took = {way_of(x, row, crop, flip) for x, row in zip(shown_at(stream, rows), rows, strict=True)}
  assert len(took) > (1 if flip else 9)


def test_statistics_and_asked_rows_are_never_augmented():
  spec, stream = split(SOURCE, KEY, tasks=2, valid_per_task=3, flip=True, crop=3)
  _, plain = split(SOURCE, KEY, tasks=2, valid_per_task=3)
  stream, plain = (jax.tree.map(jnp.asarray, each) for each in (stream, plain))
  i, live, t = jnp.arange(3), jnp.ones(3, bool), jnp.int32(1)
  for each in ("train", "valid"):
    found, wanted = (some_rows(view_at(one, t, 2), getattr(one.tasks, each), t, i, live).x for one in (stream, plain))
    np.testing.assert_array_equal(found, wanted)
  asked = split_batch(stream.test_bank, stream.tasks, stream.test, t, i, live).x
  np.testing.assert_array_equal(asked, decode(plain.test_bank.x[plain.test.idx[1, :3]]))
  rows = stream.tasks.train.idx[1, :3]
  np.testing.assert_array_equal(shown_at(stream, rows, visit=None), decode(plain.bank.x[rows]))  # as at an edge


def test_what_is_drawn_goes_before_the_task_s_own_warp_and_the_normalisation_last():
  _, stream = permuted(SOURCE, KEY, tasks=2, flip=True, mean=(0.5,), std=(0.25,))
  index, rows = stream.tasks.train.warp.warp.index, stream.tasks.train.idx[1, :9]
  for x, row in zip(shown_at(stream, rows) * 0.25 + 0.5, rows, strict=True):
    picture = SOURCE.train.x[row] / 255
    found = np.empty((30, 3))
    found[index[1]] = x.reshape(30, 3)
    assert min(abs(found.reshape(SHAPE) - way).max() for way in (picture, picture[:, ::-1])) < 1e-6


def moments_of(stream, rows, bank):
  """(mean, deviation) [T, channels] of the live pictures of a split, as they are shown."""
  found = []
  for t in range(len(rows.count)):
    x = np.asarray(warped_rows(*jax.tree.map(jnp.asarray, (bank, rows)), jnp.int32(t)))[: rows.count[t]]
    found.append((x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))))
  return np.array(found)


def test_the_training_rows_of_each_task_have_mean_0_and_deviation_1():
  for name, own in (("split", {}), ("noisy_subsets", {"train_per_class": 3, "valid_per_class": 0})):
    _, stream = STREAMS[name](SOURCE, KEY, tasks=2, normalise="task", **own)
    found = moments_of(stream, stream.tasks.train, stream.bank)
    np.testing.assert_allclose(found[:, 0], 0, atol=1e-5)
    np.testing.assert_allclose(found[:, 1], 1, atol=1e-5)


def test_all_tasks_may_share_the_statistics_of_all_training_rows():
  """Those of other splits too, and of held out rows nothing."""
  _, stream = split(SOURCE, KEY, tasks=2, valid_per_task=9, normalise="train")
  trained = np.concatenate([idx[:n] for idx, n in zip(stream.tasks.train.idx, stream.tasks.train.count, strict=True)])
  x = SOURCE.train.x[trained] / 255
  for rows in (stream.tasks.train, stream.tasks.valid, stream.test):
    own = rows.warp.normalise
    assert rows.warp.augment is None
    np.testing.assert_allclose(own.mean, np.tile(x.mean(axis=(0, 1, 2)), (2, 1)), rtol=1e-6)
    np.testing.assert_allclose(own.scale, np.tile(1 / x.std(axis=(0, 1, 2)), (2, 1)), rtol=1e-6)
  _, turned = rotated(SOURCE, KEY, tasks=3, normalise="train")
  raw = SOURCE.train.x / 255
  np.testing.assert_allclose(turned.test.warp.normalise.mean[2], raw.mean(axis=(0, 1, 2)), rtol=1e-6)


def test_a_constant_channel_becomes_zeros_and_vectors_go_number_by_number():
  still = SOURCE._replace(train=SOURCE.train._replace(x=np.full_like(SOURCE.train.x, 7)))
  _, stream = split(still, KEY, tasks=2, normalise="train")
  assert abs(moments_of(stream, stream.tasks.train, stream.bank)).max() < 1e-4
  x = DRAW.normal(size=(40, 5)) * np.arange(1, 6) + 3
  y = np.arange(40) % 4
  _, own = from_arrays(
    [(x[y < 2], y[y < 2]), (x[y > 1], y[y > 1])], [(x[:2], y[:2]), (x[2:4], y[2:4])], normalise="train"
  )
  np.testing.assert_allclose(own.test.warp.normalise.mean[0], x.mean(axis=0), rtol=1e-4)
  np.testing.assert_allclose(1 / own.tasks.train.warp.normalise.scale[1], x.std(axis=0), rtol=1e-4)


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_every_stream_has_the_options_and_is_as_it_was_without_them(name):
  assert set(Pictures._fields) <= set(fields(STREAMS[name], 2))
  small = {
    "examples_per_task": 12,
    "train_per_class": 3,
    "valid_per_class": 1,
    "tasks": 2,
    "old": (0, 1),
    "new": (2, 3),
  }
  small |= {"classes": ((0, 1), (2, 3)), "angles": (0.0, 9.0)}
  own = {key: small[key] for key in small if key in fields(STREAMS[name], 2)}
  if name == "datasets":
    own["tasks"] = 1
  (_, plain), (_, off) = (STREAMS[name](SOURCE, KEY, **own, **extra) for extra in ({}, {"crop": 0, "mean": ()}))
  assert type(plain.tasks.train.warp) is type(off.tasks.train.warp) is not Dressed
  spec, shown = STREAMS[name](SOURCE, KEY, **own, flip=True, crop=2, normalise="task")
  assert shown.tasks.train.warp.augment.crop.tolist() == [2] * spec.T
  assert shown.tasks.valid.warp.augment is None and shown.test.warp.augment is None
  np.testing.assert_array_equal(shown.tasks.train.idx, plain.tasks.train.idx)
  assert axes_of(spec, shown, spec.T).tasks.train.warp.normalise.mean is None  # as many seeds as tasks and channels


def test_seeds_with_rows_of_their_own_have_statistics_of_their_own():
  config = default()
  config.stream = {"name": "split", "source": "digits", "examples_per_task": 20, "normalise": "train"}
  _, stream, axes, _ = build_stream(complete(config), (0, 1))
  assert axes.test.warp.normalise.mean == 0 and stream.test.warp.normalise.mean.shape == (2, 5, 1)
  shared = stack([split(SOURCE, jax.random.key(seed), tasks=2, flip=True)[1] for seed in (0, 1)])[1]
  assert shared.tasks.train.warp.augment.flip is None


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"normalise": "all"}, "config.stream.normalise='all' is not known"),
    ({"normalise": "train", "mean": (0.5,), "std": (1.0,)}, "takes mean and deviation from the data; leave it out"),
    ({"mean": (0.5,)}, r"config.stream.std=\(\) holds 0 numbers; give both of mean and std, with one for each of 3"),
    ({"std": (0.5,)}, r"config.stream.mean=\(\) holds 0"),
    ({"mean": (0.5, 0.5), "std": (1.0,)}, "holds 2 numbers; give both"),
    ({"mean": (0.5,), "std": (0.0,)}, "config.stream.std=.* must be above 0"),
    ({"crop": 6}, "config.stream.crop=6 is more than the 5 pixels"),
    ({"crop": -1}, "config.stream.crop=-1 is too small"),
    ({"flip": 2}, "config.stream.flip=2 must be true or false"),
    ({"flop": True}, "config.stream field='flop' is not known. Did you mean flip"),
  ],
)
def test_what_makes_no_sense_is_refused(options, words):
  with pytest.raises(ConfigError, match=words):
    split(SOURCE, KEY, tasks=2, **options)


def test_only_pictures_are_flipped():
  x, y = DRAW.normal(size=(8, 5)), np.arange(8) % 2
  with pytest.raises(ConfigError, match=r"flip=True .* are for pictures .* examples of \[5\]"):
    from_arrays([(x, y)], [(x, y)], flip=True)
  with pytest.raises(ConfigError, match="config.stream field='flipp' is not known"):
    from_arrays([(x, y)], [(x, y)], flipp=True)


def test_where_boundaries_are_hidden_each_place_of_the_stream_is_a_visit():
  _, stream = subsets(SOURCE, KEY, classes=((0, 1), (2, 3)), boundaries=False, passes=2, flip=True)
  row = int(stream.tasks.train.idx[0, 0])
  took = [way_of(x, row, 0, True) for x in shown_at(stream, [row] * 24, t=None)]
  assert len(set(took)) == 2


def test_any_stream_can_be_dressed():
  spec, stream = split(SOURCE, KEY, tasks=2)
  warp = Permutation(np.tile(np.arange(30, dtype=np.int32), (2, 1)))
  _, own = dressed(spec, stream._replace(test=stream.test._replace(warp=warp)), mean=(0.1,), std=(2.0,), crop=1)
  assert own.test.warp.warp is warp and own.test.warp.augment is None and own.tasks.train.warp.warp is None
  np.testing.assert_allclose(own.test.warp.normalise, (np.full((2, 3), 0.1), np.full((2, 3), 0.5)), rtol=1e-6)
  assert dressed(spec, stream)[1] is stream


def test_a_predictor_shows_pictures_as_the_run_did():
  spec, stream = split(SOURCE, KEY, tasks=2, normalise="train")
  told = told_of({}, spec, np.uint8, one_for_all(stream.test.warp, (3, 4)))
  it = Predictor.__new__(Predictor)
  it.normalise = normalisation_of(told, 4)
  stream = jax.tree.map(jnp.asarray, stream)
  i = jnp.arange(5)
  asked = split_batch(stream.test_bank, stream.tasks, stream.test, jnp.int32(1), i, i >= 0)
  np.testing.assert_allclose(it.decoded(SOURCE.test.x[asked.place.row]), asked.x, atol=1e-6)
  by_task = split(SOURCE, KEY, tasks=2, normalise="task")[1].test.warp
  assert one_for_all(by_task, (3, 4)) == {} == one_for_all(None, (0,)) and isinstance(
    by_task.normalise, Standardisation
  )
  assert normalisation_of(told_of({}, spec, np.uint8, {}), 0) is None


def test_pictures_on_a_scale_of_each_task_are_asked_for_as_floats():
  """Else uint8 ones would be answered as if they had been shown so."""

  def shown(**options):
    warp = split(SOURCE, KEY, tasks=2, **options)[1].test.warp
    return type_shown(warp, np.uint8, one_for_all(warp, (0,)))

  assert shown(normalise="task") == "float32" and {shown(), shown(normalise="train"), shown(flip=True)} == {"uint8"}
  noisy = NoisyChannels(*np.zeros((3, 2), np.float32), np.zeros(2, np.int32))
  assert type_shown(noisy, np.uint8, {}) == type_shown(Dressed(None, noisy, None), np.uint8, {}) == "float32"
  assert type_shown(Permutation(np.zeros((2, 4), np.int32)), np.uint8, {}) == "uint8"
