"""The examples of WORKSPACE.md, as a stranger would paste them: they run, and do what the text says."""

import functools
import re
from pathlib import Path
from typing import Annotated, Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.declared import at_least, declared
from cljax.methods import METHODS
from cljax.ops.trees import parameters
from cljax.pieces.guards import GUARDS
from cljax.pieces.learner import Fit, Trained, supervised
from cljax.run import fit
from cljax.types import Array, At, Guard, Method, Phase
from tests import toys

TEXT = (Path(__file__).resolve().parent.parent / "WORKSPACE.md").read_text()
WORDS = (Annotated, Any, Array, At, Fit, Guard, Method, Phase, Trained, at_least, declared, parameters, supervised)


@pytest.fixture(scope="module")
def pasted():
  """What the code of the page defines; the tables are as before afterwards."""
  names: dict[str, Any] = {getattr(word, "__name__", ""): word for word in WORDS}
  names |= {"Annotated": Annotated, "Any": Any, "Array": Array, "flax": flax, "jax": jax, "jnp": jnp}
  names |= {"METHODS": dict(METHODS), "GUARDS": GUARDS}
  blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
  assert len(blocks) == 2
  for block in blocks:
    exec(block, names)  # noqa: S102
  yield names
  del GUARDS["l2"]


@functools.cache
def data():
  return toys.stream()


def run(method, **options):
  spec, stream = data()
  return fit(method, spec, stream, quiet=True, evaluate_group=16, **options)


def test_a_penalty_holds_the_weights(pasted):
  spec, _ = data()
  net, tx = toys.mlp(spec), optax.sgd(0.1)

  def guarded(hyper):
    return METHODS["finetune"](net, tx, spec, epochs=8, guard={"name": "l2", **hyper})

  state = run(guarded, seeds=(0, 0), hyper={"strength": [1e-6, 3.0]}).state
  chex.assert_trees_all_equal(state.params, state.past["anchor"])  # the end of the last task
  weak, strong = state.params["first"]["kernel"]
  first = jax.jit(METHODS["finetune"](net, tx, spec).init)(jax.random.key(0)).params["first"]["kernel"]
  assert np.abs(strong - first).mean() < np.abs(weak - first).mean()


def test_a_masking_method_freezes_what_a_task_owns(pasted):
  spec, _ = data()
  method = pasted["METHODS"]["keep_largest"](toys.mlp(spec), optax.adam(0.03), spec, epochs=8, share=0.4)
  outcome = run(method)
  owner = outcome.state.owner["first"]["kernel"]
  counts = [int((np.asarray(owner) == t).sum()) for t in range(3)]
  assert counts[0] > counts[1] > counts[2] > 0
  diagonal = np.diagonal(np.array(outcome.result["accuracy"])[0, 1:])
  assert diagonal.mean() > 0.5
  chex.assert_trees_all_equal_shapes(outcome.state.owner, outcome.state.params)
