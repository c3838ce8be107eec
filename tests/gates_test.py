"""The comparators of Expert Gate: the most confident expert, and the gate that saw all tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cljax.errors import ConfigError
from cljax.methods import METHODS
from cljax.run import train
from tests import toys


def trained(name, **method):
  method = {"name": name, "batch_size": 20, "epochs": 4, "warmup_epochs": 0, **method}
  config = toys.config_of(method, (32,), 0.003, {"evaluate": "ends"}, tasks=5, valid_per_task=30)
  return train(config, quiet=True)


def test_the_most_confident_expert_answers():
  spec, _ = toys.stream()
  method = METHODS["confident"](toys.mlp(spec), optax.adam(0.01), spec)
  state, x = jax.jit(lambda key: (method.init(key), 5 * jax.random.uniform(key, (9, 4, 4, 1))))(jax.random.key(0))
  apply = jax.jit(method.apply)
  np.testing.assert_array_equal(apply(state, x, None).task, [-1] * 9)  # none has learnt
  live = np.arange(4) < np.array([4, 3, 3, 4])[:, None]
  finished = np.arange(4) < 2
  state = state.replace(experts=state.experts.replace(finished=jnp.asarray(finished), classes=jnp.asarray(live)))
  logits = np.stack([apply(state, x, jnp.full(9, k)).logits for k in range(2)])
  each = [np.exp(logits[0]), np.exp(logits[1, :, :3])]
  sure = np.stack([(p / p.sum(axis=1, keepdims=True)).max(axis=1) for p in each])
  out = apply(state, x, None)
  np.testing.assert_array_equal(out.task, sure.argmax(axis=0))
  assert set(np.asarray(out.task)) == {0, 1}


def test_the_discriminative_gate_learns_the_task_and_is_an_oracle():
  outcome = trained("discriminative", gate_epochs=10, hidden=32, gate_lr=0.01)
  result = outcome.result
  assert result["oracle"]
  recognition = result["readouts"]["inferred"]["task_recognition"]
  confusion = np.array(result["task_confusion"])
  assert recognition["mean"] > 0.85
  by_task = np.diagonal(confusion, axis1=1, axis2=2) / confusion.sum(axis=2)
  np.testing.assert_allclose(recognition["by_task"], by_task)
  assert (outcome.arrays["gate_train_accuracy"][:, -1, -1] > 0.9).all()
  assert (outcome.arrays["gate_epochs"][:, -1] > 0).all()
  np.testing.assert_allclose(result["metrics"]["BWT"]["values"], 0, atol=1e-12)


def test_the_confident_gate_is_worse_than_the_one_that_saw_all():
  confident = trained("confident").result
  assert not confident["oracle"]
  assert 0.2 < confident["readouts"]["inferred"]["task_recognition"]["mean"] < 0.85


@pytest.mark.parametrize("name", ["confident", "discriminative"])
@pytest.mark.parametrize(
  ("keywords", "words"), [({"parent": "related"}, "previous, none"), ({"mode": "auto"}, "finetune, lwf")]
)
def test_refusals(name, keywords, words):
  spec, _ = toys.stream()
  with pytest.raises(ConfigError, match=words):
    METHODS[name](toys.mlp(spec), optax.adam(0.01), spec, **keywords)
