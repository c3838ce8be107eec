"""Gates without a network: how sure the method's own answers are, and how far a picture is from each task's mean."""

from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from cljax.declared import declared, one_of
from cljax.loops import mean_over
from cljax.nets.features import Phi, feature_function
from cljax.ops.losses import probabilities
from cljax.ops.slots import over_live
from cljax.pieces.gated import Gate
from cljax.types import Array, Key, Outputs, Spec, View


@declared("gate", given=1)
def entropy(
  spec: Spec,
  *,
  over: Annotated[
    str, one_of(("row", "batch"), "whose answers choose: each row's own, or all of a batch together")
  ] = "row",
) -> Gate:
  """The task whose answer is most decided: the least entropy of the softmax over its classes, as in SupSup
  (Wortsman et al. 2020, https://arxiv.org/abs/2006.14769)."""

  def errors(classes: Array, x: Array, answer: Callable[[Array], Outputs]) -> Array:
    def one(t: Array) -> Array:
      p = probabilities(answer(t).logits, jnp.broadcast_to(classes[t], (len(x), spec.C)))
      return jax.scipy.special.entr(p).sum(axis=-1)

    known = classes.any(axis=-1)
    each = over_live(one, known).T
    each = jnp.broadcast_to(each.mean(axis=0), each.shape) if over == "batch" else each
    return jnp.where(known, each, jnp.inf)

  return Gate(
    init=lambda key: jnp.zeros((spec.T, spec.C), bool), errors=errors, note=lambda classes, view: view.tasks.classes
  )


@declared("gate", given=1)
def means(spec: Spec, *, phi: Phi = "flatten") -> Gate:
  """The task whose mean picture is nearest, by the squared distance of features."""
  features, d = feature_function(phi, spec.x_shape)

  def note(own: Any, view: View) -> Any:
    mean = mean_over(lambda batch: features(batch.x), view, view.tasks.train)
    return {"mean": own["mean"].at[view.t].set(mean), "known": own["known"].at[view.t].set(True)}

  def errors(own: Any, x: Array, answer: Callable[[Array], Outputs]) -> Array:
    shown = features(x)
    each = over_live(lambda t: ((shown - own["mean"][t]) ** 2).sum(axis=-1), own["known"]).T
    return jnp.where(own["known"], each, jnp.inf)

  def init(key: Key) -> Any:
    return {"mean": jnp.zeros((spec.T, d)), "known": jnp.zeros(spec.T, bool)}

  return Gate(init=init, errors=errors, note=note)
