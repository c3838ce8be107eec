"""What a method computes, as checksums: other numbers in a closure are another method, in every process the same."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest

import cljax
from cljax import program
from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.nets import MLP
from cljax.program import TRACED_BY, program_of
from cljax.types import keep
from cljax.workdir import COMPUTES
from tests import toys

SPEC, DATA = toys.stream(counts=(6, 6))
SHIFT = jnp.arange(float(SPEC.heads * SPEC.C))


def method(name="finetune", rate=0.1, kernel_init="he", **keywords):
  net = MLP(SPEC.heads, SPEC.C, (4,), kernel_init=kernel_init)
  return METHODS[name](net, optax.sgd(rate), SPEC, batch_size=3, **keywords)


def with_phase(**changes):
  """Fine-tuning with functions of one's own in its phase."""
  made = method()
  return made._replace(phases=(made.phases[0]._replace(**changes),))


def shifting(by):
  """An edge that holds an array."""

  def enter(key, state, view, clock):
    head = {**state.params["head"], "bias": state.params["head"]["bias"] + by}
    return state.replace(params={**state.params, "head": head})

  return enter


def planning(by):
  """A plan that holds a number."""
  return lambda key, state, view, plan: (state, plan._replace(slot=plan.slot - by))


def answering(by):
  made = method()
  return made._replace(apply=lambda *args: (out := made.apply(*args))._replace(logits=out.logits + by))


def computed(made, **settings):
  return program_of(toys.experiment(made, SPEC, DATA, **settings))


PAIRS = {  # what is told apart -> (two methods, the events that differ)
  "rate": (method(), method(rate=50.0), {"fit.chunk"}),
  "strength": (*(method("ewc", guard={"name": "ewc", "strength": s}) for s in (1.0, 2.0)), {"fit.chunk"}),
  "beginning": (method(), method(kernel_init="glorot"), {"init"}),
  "array": (*(with_phase(enter=shifting(by)) for by in (SHIFT, SHIFT.at[3].add(1e-3))), {"fit.enter"}),
  "plan": (with_phase(plan=planning(1)), with_phase(plan=planning(2)), {"fit.chunk"}),
  "answer": (answering(0.5), answering(0.25), {"apply"}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_another_number_in_a_closure_is_another_method(name):
  *two, events = PAIRS[name]
  one, other = map(computed, two)
  assert {event for event in {*one, *other} if one.get(event) != other.get(event)} == events


def test_the_same_method_made_again_is_the_same():
  """Whatever its functions are called, how seeds run, and what is asked."""

  def renamed(*args):
    return shifting(SHIFT)(*args)

  one = computed(with_phase(enter=shifting(SHIFT)))
  assert one == computed(with_phase(enter=renamed), seeds=(0, 1, 2), executor="vmap", evaluate_group=3)
  assert set(one) == {TRACED_BY, "init", "apply", "fit.chunk", "fit.enter"}
  assert set(computed(with_phase(enter=keep))) == {TRACED_BY, "init", "apply", "fit.chunk"}


def test_numbers_that_are_arguments_are_no_part_of_it():
  """They stand in the identity of a run by themselves."""
  found = [computed(lambda hyper: method(rate=hyper["lr"]), hyper={"lr": lr}) for lr in (0.1, 0.2)]
  assert found[0] == found[1]


OTHER = """
import json
from tests.program_test import computed, method, shifting, with_phase, SHIFT
er = method("er", replay=2, capacity=5)
print(json.dumps([computed(er), computed(with_phase(enter=shifting(SHIFT)))]))
"""


def test_another_process_finds_the_same():
  environment = {**os.environ, "PYTHONHASHSEED": "7"}
  done = subprocess.run([sys.executable, "-c", OTHER], env=environment, capture_output=True, text=True, check=True)
  here = [computed(with_phase(enter=shifting(SHIFT))), computed(method("er", replay=2, capacity=5))]
  assert json.loads(done.stdout.splitlines()[-1]) == here[::-1]


def fit(made, folder):
  return cljax.fit(made, SPEC, DATA, workdir=folder, quiet=True)


def test_a_folder_is_that_of_one_method(tmp_path, monkeypatch):
  """Another one is refused by name, the same goes on; so do runs of versions that took no checksum, or others."""
  result = fit(method(), tmp_path).result
  told = result["config"]["method"][COMPUTES]
  assert json.loads((tmp_path / "config.json").read_text())["method"][COMPUTES] == told
  assert fit(method(), tmp_path).result == result
  with pytest.raises(ConfigError, match=r"belongs to a run with another config:\n  config.method.computes.fit.chunk: "):
    fit(method(rate=50.0), tmp_path)
  with pytest.raises(ConfigError, match="config.method.computes.fit.enter: '.absent.' there"):
    fit(with_phase(enter=shifting(SHIFT)), tmp_path)
  monkeypatch.setattr(program, "traced_by", lambda: "another version of JAX")
  assert fit(method(rate=50.0), tmp_path).result == result  # nobody can tell
  monkeypatch.undo()
  config = json.loads((tmp_path / "config.json").read_text())
  del config["method"][COMPUTES]
  (tmp_path / "config.json").write_text(json.dumps(config))
  (tmp_path / "checkpoints").rename(tmp_path / "gone")
  assert fit(method(), tmp_path).result == result


def test_what_traces_it_is_asked_anew():
  """A setting of JAX that held for a while says nothing of what is traced after it."""
  before = program.traced_by()
  with jax.enable_x64(True):
    assert program.traced_by() != before
  assert program.traced_by() == before


def test_in_memory_nothing_is_traced_for_it(monkeypatch):
  monkeypatch.setattr(program, "traced_of", lambda experiment: pytest.fail("it was traced"))
  assert COMPUTES not in cljax.fit(method(), SPEC, DATA, quiet=True).result["config"]["method"]
