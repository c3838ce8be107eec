"""The engine on toys: cutting, seeds, compilations, order of events, streams that differ by seed, faults, metrics."""

import functools

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cljax import keys
from cljax.data.streams import stack
from cljax.drive import Driver, Stopped, drive, start
from cljax.errors import ConfigError
from cljax.journal import Noted
from cljax.monitor import Monitor, rows_to_log
from cljax.types import Method, Outputs
from tests import toys
from tests.subjects import Subject, assert_same, cut, evaluations, finished, method_of, recording
from tests.subjects import compiled as subject
from tests.tiers import at_release

compilations = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, seconds, **_: compilations.append(event) if event.endswith("/backend_compile_duration") else None
)


def seed_of(tree, s):
  return jax.tree.map(lambda leaf: leaf[s : s + 1], tree)


ROUTING = at_release("routing")  # as every method in methods_test.py, more closely
NAMES = pytest.mark.parametrize("name", ["plain", "er", *ROUTING])


# Cutting and seeds.


MORE = at_release(("er", 1), *((name, chunk) for name in ("plain", "routing") for chunk in (7, 1)))


@pytest.mark.parametrize("name, chunk", [("plain", 48), ("er", 7), *MORE])
def test_any_chunk_length_gives_the_same_bits(name, chunk):
  """Longer than a phase, across epochs, and step by step (there is no loop then: within rounding)."""
  if chunk > 1:
    assert_same(finished(name, chunk), finished(name))
  else:
    chex.assert_trees_all_close(finished(name, chunk).state, finished(name).state, atol=1e-5)
    np.testing.assert_allclose(finished(name, chunk).right["task"], finished(name).right["task"], atol=2)


@NAMES
def test_irregular_stops_give_the_same_bits(name):
  random = np.random.default_rng(1)
  units = list(cut(subject(name).units(), lambda: int(random.integers(1, 12))))
  assert_same(subject(name).run(units), finished(name))


@NAMES
def test_a_repeated_run_gives_the_same_bits(name):
  """Nothing is kept between runs, and programs compiled anew are the same."""
  before = finished(name)
  assert_same(subject(name).run(), before)


def test_seeds_differ():
  first, second = (seed_of(finished("er").state, s) for s in range(2))
  assert not np.array_equal(first.params["first"]["kernel"], second.params["first"]["kernel"])
  assert not np.array_equal(first.memory.place.row, second.memory.place.row)


@pytest.mark.parametrize("name, executor", [("er", "map"), ("plain", "each")])
def test_a_seed_alone_has_the_bits_it_has_among_others(name, executor):
  among = finished(name, 100, (0, 1), executor)
  alone = finished(name, 100, (1,), executor)
  chex.assert_trees_all_equal(seed_of(among.state, 1), alone.state)
  np.testing.assert_array_equal(among.right["task"][1:], alone.right["task"])


@pytest.mark.parametrize("name, executor", [("er", "vmap"), ("plain", "each")])
def test_executors_agree(name, executor):
  """Within rounding; what a memory holds to the bit."""
  other = finished(name, 100, (0, 1), executor)
  chex.assert_trees_all_close(other.state, finished(name).state, atol=1e-5)
  if name == "er":
    chex.assert_trees_all_equal(other.state.memory, finished(name).state.memory)


# Compilations, transfers and the order of events.


def marked_edge(key, state, view, clock):
  return state


def with_edges(counts):
  spec, data = toys.stream(counts)
  method = toys.plain(spec, epochs=5, enter=marked_edge, tick=marked_edge, exit=marked_edge)
  return Subject(toys.experiment(method, spec, data, chunk=20))


@functools.cache
def counted(counts, cut_to):
  """(sizes of the caches after a run, programs compiled by the loop, its chunks, its subject)."""
  subject = with_edges(counts)
  carry = subject.start()
  subject.compiled["keys"](jnp.arange(2), jnp.arange(3))  # shared by all subjects: only the first would compile it
  units = list(cut(subject.units(), lambda: cut_to))
  before = len(compilations)
  subject.run(units, carry=carry)
  sizes = {name: function._cache_size() for name, function in subject.compiled.items() if name != "keys"}
  return sizes, len(compilations) - before, sum(unit.kind == "chunk" for unit in units), subject


def edged():
  return counted((30, 23), 20)[-1]


def test_compilations_do_not_depend_on_tasks():
  """T = 2 against T = 5: every function once, and nothing beside them."""
  two, many = counted((30, 23), 20), counted((30, 23, 40, 12, 35), 20)
  events = {"init", "view", "fit.chunk", "fit.enter", "fit.tick", "fit.exit", "evaluate.task", "report"}
  assert two[0] == many[0] == dict.fromkeys(events, 1)
  assert two[1] == many[1] == len(events) - 1  # init came before the loop


def test_compilations_do_not_depend_on_chunks():
  few, many = counted((30, 23), 20), counted((30, 23), 1)
  assert few[2] == 10 and many[2] == 30
  assert few[0] == many[0] and few[1] == many[1]


def test_the_loop_makes_no_silent_transfer():
  """Every number goes to the device by `device_put`; compiling inside the loop as well."""
  for it in (edged(), by_seed()):
    carry = it.start()
    with jax.transfer_guard("disallow"):
      it.run(carry=carry)


def test_the_order_of_events():
  """Row 0 before training; clocks are (epoch, step, steps, total); a tick has the clock of its epoch's last step."""
  it, log = edged(), []
  phase = it.experiment.method.phases[0]._replace(epochs=2)
  timeline = it.experiment.timeline._replace(phases=(phase,))
  short = Subject(it.experiment._replace(timeline=timeline), it, ())
  short.run(list(cut(short.units(), lambda: 2)), compiled=recording(it.compiled, log))
  assert log == [
    *evaluations(0, 2),
    ("view", 0),
    ("fit.enter", 0, 0, 3, 0),
    ("fit.chunk", 0, 0, 3, 0, 2),
    ("fit.chunk", 0, 2, 3, 2, 1),
    ("fit.tick", 0, 2, 3, 2),
    ("fit.chunk", 1, 0, 3, 3, 2),
    ("fit.chunk", 1, 2, 3, 5, 1),
    ("fit.tick", 1, 2, 3, 5),
    ("fit.exit", 2, 0, 3, 6),
    *evaluations(1, 2),
    ("view", 1),
    ("fit.enter", 0, 0, 3, 6),
    ("fit.chunk", 0, 0, 3, 6, 2),
    ("fit.chunk", 0, 2, 3, 8, 1),
    ("fit.tick", 0, 2, 3, 8),
    ("fit.chunk", 1, 0, 3, 9, 2),
    ("fit.chunk", 1, 2, 3, 11, 1),
    ("fit.tick", 1, 2, 3, 11),
    ("fit.exit", 2, 0, 3, 12),
    *evaluations(2, 2),
  ]


def test_every_use_has_its_own_key():
  """Edges, plans, steps and orders of all positions draw different numbers; enter of two tasks too."""
  key = jax.random.key(0)
  purposes = (keys.ORDER, keys.PLAN, keys.STEP, keys.ENTER, keys.TICK, keys.EXIT)
  uses = [keys.use(key, purpose, jnp.int32(p)) for purpose in purposes for p in range(20)]
  assert len({tuple(np.asarray(jax.random.key_data(use)).tolist()) for use in uses}) == 120


# Streams that differ by seed.


@functools.cache
def own_streams():
  """Two seeds with rows, permutations and lengths of their own; one bank."""
  specs, streams = zip(toys.stream((30, 23, 40), seed=0), toys.stream((12, 41, 19), seed=5), strict=True)
  return specs[0], streams


def differing(name, spec, data, seeds):
  method = toys.early_stop(spec, 3) if name == "stopping" else method_of(name, spec)
  return Subject(toys.experiment(method, spec, data, seeds, chunk=5, log_every_steps=2))


@functools.cache
def by_seed(name="stopping"):
  spec, streams = own_streams()
  return differing(name, spec, stack(streams)[0], (0, 1))


@functools.cache
def by_seed_run(name):
  return by_seed(name).run(), by_seed(name).rows


def values_by_seed(rows):
  """(task, step, seed) -> values of the step rows."""
  found = {}
  for row in rows:
    if row["event"] == "step":
      for i, seed in enumerate(row["seeds"]):
        found[row["task"], row["step"], seed] = tuple(row[name][i] for name in ("loss", "accuracy"))
  return found


def test_stacked_streams_share_the_bank():
  spec, streams = own_streams()
  data, axes = stack(streams)
  assert axes.bank.x is None and axes.test.idx is None
  assert axes.tasks.train.count == 0 and axes.tasks.train.idx == 0 and axes.tasks.train.warp.index == 0
  assert data.tasks.train.idx.shape == (2, 3, 41)


@pytest.mark.parametrize("name, s", [("er", 1), *at_release(("stopping", 0))])
def test_ragged_seeds_equal_their_solo_runs(name, s):
  """Each seed takes its own number of steps, ticks at its own epochs, and has the bits it has alone."""
  spec, streams = own_streams()
  carry, rows = by_seed_run(name)
  alone = differing(name, spec, streams[s], (s,))
  solo = alone.run()
  chex.assert_trees_all_equal(seed_of(carry.state, s), solo.state)
  np.testing.assert_array_equal(carry.right["task"][s], solo.right["task"][0])
  assert values_by_seed(alone.rows) == {at: values for at, values in values_by_seed(rows).items() if at[2] == s}


def test_ragged_seeds_by_any_cut():
  """Bits, and the positions and values of the metrics of each seed."""
  it = by_seed("stopping")
  carry, rows = by_seed_run("stopping")
  again = it.run(list(cut(it.units(), lambda: 2)))
  assert_same(again, carry)
  assert values_by_seed(it.rows) == values_by_seed(rows)


# Faults and metrics.


@flax.struct.dataclass
class Filling:
  limit: jax.Array
  count: jax.Array


def filling(spec):
  """Says that config.method.capacity does not suffice once it has taken more steps than a seed's own limit."""
  method = toys.plain(spec)

  def step(key, state, batch, clock, view):
    return state.replace(count=state.count + 1), {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}

  def apply(state, x, slot):
    return Outputs(jnp.zeros((len(x), spec.C)), x.reshape(len(x), -1), slot)

  return Method(
    lambda key: Filling(jax.random.randint(key, (), 0, 1000), jnp.int32(0)),
    (method.phases[0]._replace(step=step, epochs=0, steps=1000),),
    apply,
    method.report,
    lambda state: {"method.capacity": state.count > state.limit, "method.replay": jnp.array(False)},
  )


def test_a_fault_stops_the_run_and_names_the_key_and_the_seeds():
  """After the first chunk in which it is true; the seeds are those of the config."""
  spec, data = toys.stream()
  it = Subject(toys.experiment(filling(spec), spec, data, (5, 6, 7), chunk=50))
  carry = it.start()
  limits = carry.state.limit.tolist()
  assert len({limit // 50 for limit in limits}) == 3
  first = 5 + int(np.argmin(limits))
  with pytest.raises(ConfigError, match=rf"config\.method\.capacity does not suffice \(seeds \[{first}\]\)") as raised:
    it.run(carry=carry)
  assert "replay" not in str(raised.value)
  assert carry.state.count.tolist() == [(min(limits) // 50 + 1) * 50] * 3


def test_a_chunk_s_info_becomes_rows_at_fixed_positions():
  info = {"loss": np.arange(10.0).reshape(2, 5)}
  assert rows_to_log((4, 4), (5, 5), 3, info, (7, 8)) == [{"step": 6, "seeds": [7, 8], "loss": [2.0, 7.0]}]
  assert rows_to_log((0, 0), (1, 1), 3, info, (7, 8)) == [{"step": 0, "seeds": [7, 8], "loss": [0.0, 5.0]}]
  assert rows_to_log((1, 1), (2, 2), 3, info, (7, 8)) == []
  assert rows_to_log((2, 4), (4, 1), 2, info, (7, 8)) == [
    {"step": 2, "seeds": [7], "loss": [0.0]},
    {"step": 4, "seeds": [7, 8], "loss": [2.0, 5.0]},
  ]


@pytest.mark.parametrize("every", [1, 5])
def test_metrics_do_not_depend_on_the_cut(every):
  """Positions and values to the bit; evaluations stand in the same places among them."""
  it = subject("er")
  settings = it.experiment.settings._replace(log_every_steps=every)
  other = Subject(it.experiment._replace(settings=settings), it, ())
  found = []
  for length in (48, 7, 2):
    other.run(list(cut(it.units(), lambda length=length: length)))
    found.append(other.rows)
  assert found[0] == found[1] == found[2]
  steps = [row["step"] for row in found[0] if row["event"] == "step" and row["task"] == 2]
  assert steps == list(range(0, 48, every))


def test_a_stop_without_a_work_dir_stops():
  """There is nothing to save, and nothing goes on in secret."""
  it = subject("plain")
  driver = Driver(it.experiment, it.compiled, Monitor(None, 1, 0, Noted(), "toy", True), None, lambda: True)
  with pytest.raises(Stopped):
    drive(it.experiment.timeline.units(None, 0), start(it.experiment, it.compiled), driver)
