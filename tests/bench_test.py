"""The benchmark's arithmetic, its table, and its bare scans against cljax; nothing is timed and no peer is needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import bare, convolving, problem, rows, scans, sharing, subjects, table, timing
from benchmarks.ours import config_of, experiment_of
from benchmarks.rows import Result, Row
from benchmarks.timing import Ratio, Timing
from cljax import loops
from cljax.data.sample import view_at
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.types import Clock
from tests.tiers import at_release
from tests.toys import mlp, routed, stream

LR, EXPERTS, K = 0.1, 6, 2
AVALANCHE = [
  f"avalanche_{name}" for name in ("ewc", "ewc_all", "si", "lwf", "agem", "gem", "naive", "mas", "derpp", "mer")
]
COUNTS, STEPS = (60, 60), 6  # full batches only, so that no row of task 1 is dead


def method_of(name, spec, **fields):
  fields |= {"replay": 10, "capacity": 30}
  if name == "er":
    return METHODS["er"](mlp(spec), optax.sgd(LR), spec, **fields)
  return METHODS["routing"](routed(spec, EXPERTS), LR, spec, k=K, sample="none", **fields)


def learner(phase):
  """(state, view, task) -> (state, info) after one whole task by cljax's plain step."""
  take = jax.jit(functools.partial(loops.fit_chunk, phase._replace(block=None), STEPS))
  zero, n = jnp.int32(0), jnp.int32(STEPS)
  return lambda state, view, task: take(jax.random.key(task), state, view, Clock(zero, zero, n, task * n), n)


def watcher(phase):
  """The same, but nothing is learnt and the batches [n, W, ...] are the info."""

  def look(key, state, batch, clock, view):
    return state, {"x": batch.x, "y": batch.y, "task": batch.task, "live": batch.live}

  return learner(phase._replace(step=look))


@pytest.mark.parametrize("name", ["routing", *at_release("er", "er_union")])
def test_the_bare_scans_compute_what_cljax_computes(name):
  """Same rows, same gates: the weights after a task agree, step by step and in blocks."""
  spec, data = stream(COUNTS)
  data = jax.device_put(data)
  fields = {"update": "union"} if name == "er_union" else {}
  method = method_of(name.split("_")[0], spec, **fields)
  (phase,) = method.phases
  first, second = (jax.jit(view_at)(data, jnp.int32(t)) for t in range(2))
  learn, watch = learner(phase), watcher(phase)
  state, _ = learn(jax.jit(method.init)(jax.random.key(7)), first, 0)
  _, batches = watch(state, second, 1)
  assert batches["live"].all() and len(np.unique(batches["task"])) == 2
  after, _ = learn(state, second, 1)
  mixture = name == "routing"
  routes = (state.router, state.used) if mixture else ()
  start = scans.weights_of(scans.heads_apart(state.params, spec.heads, spec.C), *routes)
  pool = bare.Rows(*(batches[key].reshape(STEPS * 20, -1) for key in ("x", "y", "task")))
  pool = pool._replace(y=pool.y[:, 0], task=pool.task[:, 0])
  experts = {"experts": EXPERTS, "k": K, "cotrain": True} if mixture else {}
  setting = bare.Setting(LR, 10, **experts, union=name == "er_union")
  routes = (after.router, after.used) if mixture else ()
  expected = scans.weights_of(scans.heads_apart(after.params, spec.heads, spec.C), *routes)
  assert np.abs(expected.kernel - start.kernel).max() > 1e-3
  for block in (1, 2):
    run = jax.jit(functools.partial(bare.scan, setting, block))
    found = run(start, pool, jnp.arange(STEPS * 20).reshape(STEPS, 20), jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)


def test_blocks_draw_the_noise_of_the_plain_scan():
  setting = bare.Setting(LR, 2, experts=4, k=2, noise=1.0)
  random = np.random.default_rng(0)
  shapes = {"first": ((9, 12), (12,)), "hidden_1": ((3, 12), (12,)), "head": ((3, 2, 4), (2, 4))}
  params = {k: {"kernel": random.normal(size=w), "bias": random.normal(size=b)} for k, (w, b) in shapes.items()}
  router = random.normal(size=(2, 2, 4))
  params, router = jax.tree.map(lambda leaf: leaf.astype(np.float32), (params, router))
  start = scans.weights_of(params, router)
  pool = bare.Rows(random.random((30, 9)).astype(np.float32), np.arange(30) % 4, np.arange(30) // 15)
  pool = jax.device_put(pool)
  index = jnp.asarray(random.integers(0, 15, (4, 4)))
  found = [bare.scan(setting, block, start, pool, index, jax.random.key(1)) for block in (1, 2)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), *found)


def test_the_schedule_is_one_pass_and_a_reservoir():
  first, second = problem.schedules(200, capacity=50)
  assert sorted(first.current.ravel()) == list(range(200)) and sorted(second.current.ravel()) == list(range(200, 400))
  assert first.current.shape == first.replayed.shape == (20, 10)
  for step in range(1, 20):
    assert set(first.replayed[step]) <= set(first.current[:step].ravel())
    assert len(set(first.replayed[step])) == 10
  late = second.replayed[10:].ravel()
  assert (late < 200).any() and (late >= 200).any()


def test_pictures_can_be_learnt_and_both_splits_have_the_same_classes():
  data = problem.source(2000)
  assert data.train.x.shape == (2000, 28, 28, 1) and data.train.x.dtype == np.uint8
  means = np.stack([data.train.x[data.train.y == c].mean(axis=0).ravel() for c in range(10)])
  far = ((data.test.x.reshape(-1, 1, 784).astype(np.float32) - means) ** 2).sum(axis=2)
  assert (far.argmin(axis=1) == data.test.y).mean() > 0.9
  tasks = problem.problem(data, np.stack([np.arange(784), np.arange(784)[::-1]]))
  np.testing.assert_array_equal(tasks.x[0][:, ::-1], tasks.x[1])


class Ticking:
  """A subject that takes a second, two seconds, ... of a clock of its own."""

  steps = 1000

  def __init__(self, now, speed):
    self.now, self.speed, self.calls, self.taken = now, speed, [], 0

  def train(self, task):
    self.calls.append(f"train {task}")
    self.taken += 1
    self.now[0] += self.speed * self.taken

  def keep(self):
    self.calls.append("keep")

  def back(self):
    self.calls.append("back")

  def accuracy(self):
    return 0.5


def test_rounds_interleave_and_ratios_are_made_within_them(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(timing.time, "process_time", lambda: now[0])
  monkeypatch.setattr(timing.time, "perf_counter", lambda: 2 * now[0])
  slow, fast = Ticking(now, 4.0), Ticking(now, 1.0)
  assert timing.learn(slow) == 0.5 and slow.calls == ["train 0", "keep", "train 1", "back"]
  slow.taken = 0
  found = timing.interleave({"slow": slow, "fast": fast}, 3)
  assert found["slow"] == Timing((4000, 8000, 12000), (8000, 16000, 24000)) and found["fast"].cpu == (1000, 2000, 3000)
  assert timing.ratio(found["slow"], found["fast"]) == Ratio(4, 4, 4)
  assert timing.ratio(Timing((1, 9, 4), ()), Timing((1, 3, 2), ())) == Ratio(2, 1, 3)
  assert rows.median([3, 1, 2]) == 2 and rows.median([4, 1, 2, 3]) == 2.5


def test_a_row_says_what_it_found():
  timings = {"a": Timing((10, 20, 30), (11, 21, 31)), "b": Timing((80, 150, 250), (1, 2, 3))}
  alike = {"a": 0.90, "b": 0.91}
  row = Row("x", "a step", "a", "b", 7.5, True)
  found = rows.result(row, timings, alike)
  assert found.ratio == Ratio(8, 7.5, 250 / 30) and found.met() and not found.trouble
  assert (found.ours, found.other) == ("20 (21)", "150 (2)")
  small = rows.result(row._replace(at_least=False, goal=0.1), timings, alike)
  assert small.ratio.median == pytest.approx(1 / 8) and small.met() is False
  assert rows.result(row._replace(goal=None), timings, alike).met() is None
  apart = {"a": 0.90, "b": 0.80}
  assert "differ" in rows.trouble(row, apart) and rows.trouble(row._replace(check="learns"), apart) == ""
  assert "not learnt" in rows.trouble(row._replace(check="learns"), {"a": 0.9, "b": 0.1})
  assert rows.trouble(row._replace(check="none"), {"a": 0.1, "b": 0.1}) == ""


def test_the_table():
  good = Result("a step", "20 (21)", "150 (160)", Ratio(7.5, 7, 8), 7.5, True)
  bad = Result("a start", "3 s", "9 s", Ratio(3, 3, 3), 2, False, "accuracies differ", " s")
  lines = table.table([good, bad]).splitlines()
  assert len({len(line) for line in lines}) == 1
  assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
    "a step",
    "20 (21)",
    "150 (160)",
    "7.50",
    "≥ 7.5",
    "yes",
    "7.00..8.00",
  ]
  assert "check failed (accuracies differ)" in lines[3] and "≤ 2 s" in lines[3]
  page = table.page([good], {"a": 0.9}, table.facts(2000, 5), "settings of a step")
  facts = (f"| {name} " for name in ("jax", "torch", "commit", "date", "command"))
  for part in (*facts, "settings of a step", "cljax[peers]", "0.900"):
    assert part in page, part
  assert "{" not in page


def test_missing_peers_are_told(monkeypatch):
  monkeypatch.setattr(rows, "present", lambda module: False)
  missing = rows.without_peers(rows.chosen([]))
  assert missing == [
    "stacked",
    "modulelist",
    "tuned",
    "avalanche",
    *AVALANCHE,
    "er",
    "convolving_torch",
    "alone_torch",
    "meta_torch",
  ]
  text = rows.left_out(missing)
  assert "pip install 'cljax[peers]'" in text and "avalanche" in text
  assert rows.without_peers(["bare", "start"]) == []
  monkeypatch.setattr(rows, "present", lambda module: module == "torch")
  assert rows.without_peers(rows.chosen([])) == ["avalanche", *AVALANCHE]


@pytest.fixture
def small(monkeypatch):
  """The net of `convolving` on few pixels; the same for every test, as JAX keeps what it has traced."""
  for name, value in (("STEPS", 3), ("SHAPE", (8, 8, 3)), ("CHANNELS", (4, 4, 6, 6)), ("HIDDEN", 5), ("LR", 0.2)):
    monkeypatch.setattr(convolving, name, value)


def test_a_loop_of_convolutions_takes_the_steps_that_are_dispatched(small):
  (found,) = convolving.convolving(["bare", "convolving"], 1)
  assert found.goal == 1.05 and not found.at_least and "dispatched" in found.text
  calls = convolving.sides(["convolving"], 3)
  assert list(calls) == ["loop", "convolving"]
  xs, _ = convolving.batches(3)
  start = jax.jit(convolving.Net().init)(jax.random.key(0), xs[0])["params"]
  assert np.abs(start["Conv_0"]["kernel"] - calls["loop"]()["Conv_0"]["kernel"]).max() > 1e-4
  assert convolving.convolving(["bare"], 1) == []


@pytest.mark.slow
def test_the_tree_takes_the_steps_of_one_configuration_after_the_other(monkeypatch):
  """`sharing` compares their weights itself; here two layers on few pixels, four configurations."""
  for name, value in (
    ("STEPS", 2),
    ("SHAPE", (8, 8, 3)),
    ("NET", {**sharing.NET, "channels": (3, 3), "pools": (1, 2), "hidden": (5,)}),
  ):
    monkeypatch.setattr(sharing, name, value)
  found = sharing.sharing(["bare", "naive"], 1)
  assert [result.goal for result in found] == [0.85] and "one by one" in found[0].text
  monkeypatch.setattr(sharing, "one_by_one", lambda net, spec, carry, batch: carry)
  with pytest.raises(AssertionError):
    sharing.sharing(["naive"], 1)
  assert sharing.sharing(["bare"], 1) == []
  (memory,) = sharing.sharing(["memory_tree"], 1)
  assert memory.goal is None and memory.ours.endswith(" MB") and 1 < memory.ratio.median < 4


def test_rows_have_names_of_their_own():
  assert len(set(rows.NAMES)) == len(rows.NAMES)
  with pytest.raises(ConfigError, match="tuned"):
    rows.chosen(["tunde"])


def test_subjects_of_one_name_keep_and_ask_as_many_rows():
  """What is timed against Avalanche has one head and takes its steps one by one; each has its row."""
  for name in ("ewc", "si", "lwf", "agem", "gem", "ewc_all"):
    method, fields = subjects.LIBRARY[name]
    experiment = experiment_of(config_of(method, tasks=2, **fields), problem.source(100))
    (phase,) = experiment.method.phases
    assert experiment.spec.heads == 1 and phase.block is None and phase.batch == problem.BATCH and phase.epochs == 1
    (row,) = [row for row in rows.ROWS if row.name == f"avalanche_{name}"]
    assert (row.ours, row.other) == (f"cljax.{name}", f"avalanche.{name}")
    called = subjects.called(name)
    guard = fields.get("guard", {})
    assert guard.get("per_task") == called.keywords.get("patterns_per_exp")
    assert guard.get("drawn_rows") == called.keywords.get("sample_size")
  with pytest.raises(KeyError):
    subjects.called("finetune")


def test_configs_are_the_paper_s_shapes():
  config = config_of("routing", capacity=10_000)
  assert tuple(config.net.widths) == (20, 20) and config.method.capacity == 10_000 and config.stream.tasks == 20
  assert config_of("er", scenario="domain").stream.scenario == "domain"
