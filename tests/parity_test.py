"""The comparison with Avalanche: the rows it is given are those that cljax learns, its table, its changes of what is
otherwise within Avalanche; no peer is needed.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import avalanche_changes, parity, parity_page, rows
from benchmarks.parity_cases import APART, METHODS, Case, Found, cases, chosen
from benchmarks.parity_sides import LOOKED_AT, Course, Side, Size, apart
from cljax.errors import ConfigError
from tests.shell import shell

SMALL = Size(tasks=2, rows=33, seeds=2)  # the last batch of a task is not full


def answered(weights, x):
  """Logits and what goes into the layers, in plain arithmetic."""
  inputs = [x]
  for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
    inputs.append(np.maximum(inputs[-1] @ kernel + bias, 0) if len(inputs) < 3 else inputs[-1] @ kernel + bias)
  return inputs


def learnt(weights, x, y, lr, batch):
  """The weights after one pass by plain SGD over rows in the order given."""
  weights = [leaf.astype(np.float64) for leaf in weights]
  for start in range(0, len(x), batch):
    inputs = answered(weights, x[start : start + batch] / 255)
    shares = np.exp(inputs[-1] - inputs[-1].max(axis=1, keepdims=True))
    slopes = shares / shares.sum(axis=1, keepdims=True)
    slopes[np.arange(len(slopes)), y[start : start + batch]] -= 1
    slopes /= len(slopes)
    for layer in (2, 1, 0):
      kernel, into = weights[2 * layer], inputs[layer]
      weights[2 * layer], weights[2 * layer + 1] = (
        kernel - lr * into.T @ slopes,
        weights[2 * layer + 1] - lr * slopes.sum(0),
      )
      slopes = (slopes @ kernel.T) * (into > 0)
  return weights


def test_the_rows_given_in_their_order_are_what_cljax_learns():
  """Plain SGD in plain arithmetic over what Avalanche would be given ends where cljax does, for each seed."""
  with jax.default_matmul_precision("highest"):
    course = Course(SMALL)
    given, ours = course.given(), course.ours("finetune", {})
  assert SMALL.tasks - 1 == LOOKED_AT and ours.accuracy.shape == (2,)
  assert not np.array_equal(given[0].train[0][0], given[1].train[0][0])
  for one, weights, accuracy in zip(given, ours.weights, ours.accuracy, strict=True):
    found = [layer[name] for layer in (one.params["first"], one.params["hidden_1"]) for name in ("kernel", "bias")]
    found += [one.params["head"][name][..., 0, :] for name in ("kernel", "bias")]
    for x, y in one.train:
      assert x.shape == (33, 64)
      found = learnt(found, x, y, 0.1, 10)
    for a, b in zip(found, weights, strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    right = [(answered(found, x / 255)[-1].argmax(axis=1) == y).mean() for x, y in one.test]
    assert np.mean(right) == pytest.approx(accuracy, abs=2 / 359)


def test_weights_apart():
  def side(*leaves):
    return Side(np.zeros(len(leaves)), [[np.zeros(3), np.array([leaf])] for leaf in leaves])

  assert apart(side(1.0, 2.0), side(1.0, 2.5)) == 0.5 and apart(side(1.0), side(1.0)) == 0


def found_of(ours, theirs, far, alike, moved=0.1):
  case = Case("ewc", "EWC", "as it comes", ("finetune", {}), None, alike)
  return Found(case, np.array(ours), np.array(theirs), far, moved)


def test_the_same_algorithm_is_held_to_its_weights():
  assert found_of([0.8, 0.9], [0.8, 0.9], APART / 2, True).agrees()
  assert not found_of([0.8, 0.9], [0.8, 0.9], APART * 2, True).agrees()
  assert not found_of([0.8, 0.9], [0.8, 0.8], APART / 2, True).agrees()
  assert not found_of([0.8, 0.9], [0.8, 0.9], np.nan, True).agrees()
  assert found_of([0.8, 0.9], [0.82, 0.9], 1.0, False).agrees()
  assert not found_of([0.8, 0.9], [0.7, 0.7], 1.0, False).agrees()


def test_every_method_is_made_alike_once():
  """And every guard among them can be made; both sides keep as many rows."""
  size = Size()
  made = cases(size)
  assert [case.name for case in made if case.alike] == list(METHODS)
  assert {case.name for case in made} == set(parity_page.NOTES) == set(METHODS)
  course = Course(SMALL)
  for case in cases(SMALL):
    experiment = course.experiment(*case.ours)
    assert experiment.spec.heads == 1 and len(experiment.method.phases) == 1
    guard = case.ours[1].get("guard", {})
    assert guard.get("per_task") == case.called.keywords.get("patterns_per_exp")
    assert guard.get("drawn_rows") == case.called.keywords.get("sample_size")
  every = next(case for case in made if case.name == "agem" and case.alike).called.keywords
  assert every["sample_size"] // (size.tasks - 1) >= every["patterns_per_exp"] == size.rows


@pytest.mark.parametrize("seed", range(5))
def test_the_solver_that_stands_in_is_exact(seed):
  """No v below its bound, no slope below 0, and no slope where v is above its bound."""
  random = np.random.default_rng(seed)
  G, g, bound = random.normal(size=(4, 30)), random.normal(size=30), np.full(4, 0.5 * (seed % 2))
  P, q = G @ G.T, G @ g
  v = avalanche_changes.least(P, q, bound)
  slopes = P @ v + q
  assert (v >= bound).all() and (slopes > -1e-10).all() and np.abs(slopes * (v - bound)).max() < 1e-10


def test_the_table_and_the_page():
  found = [found_of([0.8, 0.9], [0.7, 0.8], 0.02, False), found_of([0.8, 0.9], [0.8, 0.9], 1e-6, True, 0.0)]
  lines = parity_page.table(found).splitlines()
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
  assert cells[0] == ["EWC", "as it comes", "0.850 ± 0.050", "0.750 ± 0.050", "-0.100", "2.0e-02", "1.0e-01", "no"]
  assert cells[1][5:] == ["1.0e-06", "-", "yes"]
  page = parity_page.page(found, Size())
  assert all(len(line) <= 120 for line in parity_page.notes(METHODS).splitlines())
  for part in ("3 tasks of 1000 rows", "| avalanche-lib", "| commit", "| date", "| command", "quadprog"):
    assert part in page, part
  assert "{" not in page
  assert "GEM" not in parity_page.notes(["si"])


def test_gem_s_solver_is_told(monkeypatch):
  monkeypatch.setattr(parity_page, "has_solver", lambda: False)
  assert "is not installed" in parity_page.notes(["gem"])
  monkeypatch.setattr(parity_page, "has_solver", lambda: True)
  assert "was solved by quadprog" in parity_page.notes(["gem"])


def test_methods_are_chosen_by_name():
  assert chosen([]) == list(METHODS) and chosen(["si"]) == ["si"]
  with pytest.raises(ConfigError, match="gem"):
    chosen(["gme"])


@pytest.fixture
def typed(monkeypatch):
  """Sets the flags of the command."""

  def set_flags(methods=(), seeds=3, write=False):
    for name, value in (("WANTED", list(methods)), ("SEEDS", seeds), ("WRITE", write)):
      monkeypatch.setattr(parity, name, SimpleNamespace(value=value))

  return set_flags


@pytest.mark.parametrize(("there", "told"), [((), "PyTorch and Avalanche"), (("torch",), "Avalanche")])
def test_what_is_missing_is_told(monkeypatch, typed, there, told):
  typed()
  monkeypatch.setattr(rows, "present", lambda module: module in there)
  with pytest.raises(ConfigError, match=rf"compares with {told}, which is not here: pip install 'cljax\[peers\]'"):
    parity.main()


def test_writing_needs_everything(monkeypatch, typed):
  monkeypatch.setattr(parity.config_files, "installed", lambda: False)
  for flags in ({"methods": ["si"]}, {"seeds": 2}):
    typed(**flags, write=True)
    with pytest.raises(ConfigError, match="all methods and at least --seeds=3"):
      parity.check([])
  typed(write=True)
  parity.check([])
  monkeypatch.setattr(parity.config_files, "installed", lambda: True)
  with pytest.raises(ConfigError, match="installed package"):
    parity.check([])


def test_a_mistake_in_the_command_is_one_line():
  done = shell("benchmarks.parity", "--methods=nothing")
  assert done.returncode == 2 and "error: --methods" in done.stderr and "Traceback" not in done.stderr
  assert "--seeds=3" in shell("benchmarks.parity", "--help").stdout
