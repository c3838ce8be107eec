"""The benchmark for an accelerator, on a CPU: its scan, its budget, its table; nothing that it times is judged."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator, accelerator_page, problem, timing
from benchmarks.accelerator import ROWS, SUBJECTS, Budget, Found, Line
from benchmarks.chunks import full_scan
from benchmarks.rows import Row
from benchmarks.timing import Ratio
from cljax import loops
from cljax.data.sample import view_at
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.pieces.optimizers import sgd
from cljax.types import Clock
from tests.shell import shell
from tests.tiers import at_release
from tests.toys import mlp, stream


@functools.cache
def taken(run, block):
  """(state, info) after the four steps of a task whose last batch has dead rows, and the kernel before."""
  spec, data = stream((37, 23, 40))
  method = METHODS["er"](mlp(spec), sgd(0.1), spec, replay=4, capacity=12, block=block)
  (phase,) = method.phases
  assert (phase.block is None) == (block == 1)

  @jax.jit
  def whole(data):
    n, state = jnp.int32(4), method.init(jax.random.key(0))
    clock = Clock(jnp.int32(0), jnp.int32(0), n, jnp.int32(0))
    view = view_at(data, jnp.int32(0), spec.heads)
    return run(phase, 4, jax.random.key(1), state, view, clock, n), state.params["first"]["kernel"]

  return whole(data)


@pytest.mark.parametrize("block", [2, *at_release(1)])
def test_the_full_scan_computes_what_the_loop_computes(block):
  """Step by step and in blocks."""
  (loop, before), (scan, _) = taken(loops.fit_chunk, 1), taken(full_scan, block)
  chex.assert_trees_all_close(scan, loop, rtol=0, atol=1e-6)
  assert np.abs(loop[0].params["first"]["kernel"] - before).max() > 1e-3


class Ticking:
  """A subject whose every call takes `seconds` of a clock."""

  steps = 1000

  def __init__(self, clock, seconds, name="", calls=None):
    self.clock, self.seconds, self.name, self.calls = clock, seconds, name, [] if calls is None else calls

  def train(self, task):
    self.clock[0] += self.seconds
    self.calls.append(self.name)

  def keep(self):
    pass

  def back(self):
    pass

  def accuracy(self):
    return 0.9


@pytest.fixture
def clock(monkeypatch):
  """Seconds, which only subjects move."""
  now = [100.0]
  monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
  return now


def budget_of(clock, seconds):
  return Budget(seconds, clock[0], lambda: clock[0])


def test_subjects_are_built_while_there_is_time(clock):
  budget = budget_of(clock, 10)
  found = accelerator.build("abcd", lambda name: Ticking(clock, 2), budget)  # each learns two tasks
  assert list(found) == ["a", "b"] and budget.spent() == 8 and budget.left() == 2
  assert found["a"][1] == 0.9


def test_a_subject_sits_out_for_which_no_time_is_left(clock):
  """The other one goes on, and every other round is in reverse."""
  calls = []
  subjects = {"long": Ticking(clock, 4, "long", calls), "short": Ticking(clock, 1, "short", calls)}
  taken = accelerator.turns(subjects, 5, budget_of(clock, 12))
  assert calls == ["long", "short", "short", "long", "short"]
  assert taken == {"long": {0: 4000, 1: 4000}, "short": {0: 1000, 1: 1000, 2: 1000}}
  assert accelerator.turns(subjects, 5, budget_of(clock, 0)) == {"long": {}, "short": {}}


def test_pytorch_s_turns_are_shorter(clock):
  """Rows and plans alike; what it has learnt is checked before."""

  class Peer(Ticking):
    tensors = [(np.arange(100), np.arange(100))] * 4
    plans = [np.zeros((10, 20))] * 2
    steps = 80

  peer = Peer(clock, 1)
  found = accelerator.build(["a"], lambda name: accelerator.OnCard(peer), budget_of(clock, 10))
  assert found["a"][0].steps == 10 == len(peer.plans[0]) and all(len(x) == len(y) == 100 for x, y in peer.tensors)
  found["a"][0].shorten()
  assert found["a"][0].steps == 1 and all(len(x) == len(y) == 10 for x, y in peer.tensors)


def test_a_ratio_is_made_within_rounds():
  taken = {"a": {0: 10.0, 1: 20.0, 2: 40.0}, "b": {1: 60.0, 2: 80.0, 3: 1.0}}
  alike = {"a": 0.9, "b": 0.91}
  row = Row("x", "a step", "a", "b", None, True)
  line = accelerator.line_of(row, taken, alike)
  assert line == Line("a step", (20, 40), (60, 80), Ratio(2.5, 2, 3), "")
  assert accelerator.line_of(row._replace(at_least=False), taken, alike).ratio == Ratio((1 / 3 + 1 / 2) / 2, 1 / 3, 0.5)
  assert "differ" in accelerator.line_of(row, taken, {"a": 0.9, "b": 0.7}).trouble
  assert accelerator.line_of(row, {"a": taken["a"]}, alike) is None


def test_what_is_not_measured_is_told(clock, monkeypatch, capsys):
  """Rows without their peer, and rows whose subjects were not built in time."""
  monkeypatch.setattr(accelerator, "without_torch", lambda: "there is no PyTorch")
  made = []
  found = accelerator.measure(
    ["tuned", "cotrain_vmap", "cotrain_map", "loop"],
    8,
    3,
    budget_of(clock, 12),
    lambda name: made.append(name) or Ticking(clock, 1.5),
  )
  assert made == ["cljax.cotrain", "cljax.cotrain_vmap", "cljax.cotrain_map"]
  assert [line.text for line in found.lines] == [row.text for row in ROWS if row.name == "cotrain_vmap"]
  assert found.left_out == dict(tuned="there is no PyTorch", cotrain_map="no time was left", loop="no time was left")
  told = capsys.readouterr().err
  assert "left out: tuned, there is no PyTorch" in told and "left out: loop, no time was left" in told


def test_every_row_has_its_subjects():
  """In the order in which they are built, each once, and none for nothing."""
  assert {name for row in ROWS for name in (row.ours, row.other)} == set(SUBJECTS)
  assert len(set(SUBJECTS)) == len(SUBJECTS) and len(set(accelerator.NAMES)) == len(ROWS)
  for room, name in (subject.split(".") for subject in SUBJECTS):
    first, _, variant = name.partition("_")
    assert room != "cljax" or (first in accelerator.METHODS and variant in accelerator.VARIANTS)
  with pytest.raises(ConfigError, match="cotrain_map"):
    accelerator.chosen(["cotrain_mop"])


def test_the_page():
  lines = [
    Line("a step", (20.0, 22.0, 21.0), (60.0, 60.0, 70.0), Ratio(3, 2.9, 3.3), ""),
    Line("another", (1.0,), (1.0,), Ratio(1, 1, 1), "accuracies differ: 0.900 and 0.700"),
  ]
  found = Found(lines, {"cljax.er": 0.9}, {"cnn": "no time was left"})
  rows = accelerator_page.table(found).splitlines()
  assert [cell.strip() for cell in rows[2].strip("|").split("|")] == [
    "a step",
    "21.0 (20.0..22.0)",
    "60.0 (60.0..70.0)",
    "3.00",
    "2.90..3.30",
    "alike",
  ]
  assert "accuracies differ" in rows[3] and len({len(row) for row in rows}) == 1
  page = accelerator_page.page(found, 1000, 5, Budget(330, 0, lambda: 200.5))
  facts = ("| jax ", "| jaxlib ", "| commit ", "| device ", accelerator_page.ON_CPU, "1000, 5", "200, 330")
  for part in (*facts, "Left out: cnn, no time was left.", "channels (16, 32)", "0.900", "memory of 1,000"):
    assert part in page, part
  assert "{" not in page


@pytest.mark.slow
def test_a_whole_row_on_a_cpu(monkeypatch):
  """The loop and the scan learn the same, to the same accuracy; of a small problem."""
  for name, value in {"SIDE": 10, "TASKS": 2, "HIDDEN": 16, "TEST_ROWS": 200, "CONTRAST": 60}.items():
    monkeypatch.setattr(problem, name, value)
  found = accelerator.measure(["loop"], 104, 1, Budget(600, 0, lambda: 0))
  (line,) = found.lines
  assert line.trouble == "" and len(line.ours) == 1 and line.ours[0] > 0
  assert found.accuracy["chunk.loop"] == pytest.approx(found.accuracy["chunk.scan"], abs=2e-3)


def test_a_page_about_an_accelerator_is_not_written_on_a_cpu():
  done = shell("launch.bench", "--suite=accelerator", "--write", "--platform=cpu")
  assert done.returncode == 2 and "needs an accelerator" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow  # where the peers are installed
def test_pytorch_s_convolution_net_is_ours():
  torch = pytest.importorskip("torch")
  from benchmarks import torch_cnn
  from cljax.nets import NETS

  net = NETS["cnn"](heads=3, classes=10, **problem.CNN)
  x = np.random.default_rng(0).random((5, 28, 28, 1), np.float32)
  task = np.array([0, 2, 1, 1, 0], np.int32)
  params = jax.jit(net.init)(jax.random.key(0), x, task)["params"]
  expected = jax.jit(net.apply)({"params": params}, x, task).logits
  heads = {name: leaf.reshape(*leaf.shape[:-1], 3, 10) for name, leaf in params["head"].items()}
  found = torch_cnn.net_of({**params, "head": heads})(torch.tensor(x.reshape(5, -1)), torch.tensor(task).long())
  np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-5)
