"""A guard that holds a network to what it answered before the task in training."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from cljax.declared import above, at_least, declared
from cljax.ops.losses import held_to
from cljax.pieces.guards.examples import Answer
from cljax.types import Array, Batch, Guard, Key, Spec, View


class Teacher(NamedTuple):
  """The past of `lwf`."""

  params: Any  # as the task before the one in training ended
  collections: Any
  old: Array  # [heads or T, C] bool, live logits of earlier tasks
  t: Array  # [] int32, the task in training


@declared("method.guard", given=2)
def lwf(
  answer: Answer,
  spec: Spec,
  *,
  strength: Annotated[Array | float, at_least(0, "of the sum over old heads of `distillation`; 0 is no guard")] = 1.0,
  temperature: Annotated[Array | float, above(0, "that softens teacher and student")] = 2.0,
) -> Guard:
  """Learning without forgetting (Li and Hoiem 2016, https://arxiv.org/abs/1606.09282).

  loss = strength * sum over the heads of earlier tasks of the distillation from the net as the task before ended, on
  the task's own rows, replayed ones too; rows of earlier tasks are left out. A method with one head that answers by
  more than the head, such as `routing`, is held to its answer for each earlier task. The method of this name warms up
  new heads as well.
  """
  ways = max(spec.heads, spec.T if answer.by_task else 1)

  def init(params: Any) -> Teacher:
    return Teacher(params, answer.collections, jnp.zeros((ways, spec.C), bool), jnp.int32(0))

  def enter(key: Key, past: Teacher, params: Any, view: View) -> Teacher:
    return past._replace(t=jnp.asarray(view.t, jnp.int32))

  def all_heads(params: Any, collections: Any, batch: Batch) -> Array:
    """[B, heads or T, C] what each head, or each task, answers."""

    def one(task):
      return answer.given(params, collections, batch._replace(task=jnp.full_like(batch.task, task)))

    return jax.vmap(one, out_axes=1)(jnp.arange(ways))

  def loss(past: Teacher, params: Any, batch: Batch) -> Array:
    before = all_heads(past.params, past.collections, batch)
    now = all_heads(params, answer.collections, batch)
    return strength * held_to(now, before, past.old, batch.live & (batch.task == past.t), temperature)

  def leave(key: Key, past: Teacher, params: Any, view: View) -> Teacher:
    # taken here and not in `enter`: `single` begins each task with another network
    own = jnp.minimum(view.t, ways - 1)
    old = past.old.at[own].set(past.old[own] | view.tasks.classes[view.t])
    return past._replace(params=params, collections=answer.collections, old=old)

  return Guard(init=init, enter=enter, loss=loss, exit=leave)
