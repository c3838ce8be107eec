"""A network to begin with, trained so that a new head learns quickly on its features: a baseline without a rule.

Model-agnostic meta-learning (Finn, Abbeel and Levine 2017, https://arxiv.org/abs/1703.03400) of the representation
alone (Javed and White 2019, https://arxiv.org/abs/1905.12588), as Xiong, Ren and Urtasun 2020, section 5.1, describe
it: a fresh head of a new task takes S steps of SGD on frozen features; the loss of a query batch, old rows by their own
head and new ones by the head just learnt, goes back through these steps into the whole network.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cljax.meta.episodes import Episodes, fresh_heads
from cljax.meta.outer import SEGMENT, Place, Training, blank_place, episode_key
from cljax.meta.unroll import Inner
from cljax.nets.modes import at_rest
from cljax.ops.losses import cross_entropy
from cljax.ops.trees import where
from cljax.types import Array, Batch, Key, PyTree

STEPS, HEADS, QUERY = range(3)  # purposes of a segment's key


def parted(params: PyTree, head: str) -> tuple[dict[str, Array], dict[str, Array]]:
  """(the params of the net's heads, all others), by path."""
  flat = flatten_dict(params, sep="/")
  heads = {name: leaf for name, leaf in flat.items() if name.startswith(f"{head}/")}
  return heads, {name: leaf for name, leaf in flat.items() if name not in heads}


def joined(*parts: dict[str, Array]) -> PyTree:
  """Params from what `parted` gave."""
  return unflatten_dict({name: leaf for part in parts for name, leaf in part.items()}, sep="/")


class Query(NamedTuple):
  """Outer steps of one configuration, each an episode of its own; what moves is the network, in place of a theta."""

  net: nn.Module
  inner: Inner
  tx: optax.GradientTransformation
  head: str  # path of the net's heads
  tasks: int  # K, the old one among them
  classes: int  # C

  def begin(self, key: Key, params: PyTree, episodes: Episodes) -> Training:
    """Before the first step."""
    return Training(params, self.tx.init(params), (), blank_place(), jnp.ones(()))

  def loss(self, params: PyTree, batch: Batch) -> Array:
    """[] mean cross-entropy, each row by its own task's head."""
    return cross_entropy(at_rest(self.net, params, {}, batch.x, batch.task).logits, batch)

  def learnt(self, params: PyTree, key: Key, batches: Batch) -> PyTree:
    """The params with a fresh head of the new task that has learnt from batches [S, ...], one step of SGD each."""
    heads, others = parted(fresh_heads(key, params, self.head, self.classes), self.head)

    def step(heads: dict[str, Array], batch: Batch) -> tuple[dict[str, Array], None]:
      slope = jax.grad(lambda heads: self.loss(joined(heads, others), batch))(heads)
      return jax.tree.map(lambda w, g: w - self.inner.alpha * g, heads, slope), None

    return joined(jax.lax.scan(step, heads, batches)[0], others)

  def queried(self, params: PyTree, key: Key, batches: Batch, query: Batch) -> Array:
    """[] the loss of the query batch after the head's steps."""
    return self.loss(self.learnt(params, key, batches), query)

  def segment(
    self, key: Key, episodes: Episodes, length: int, state: Training, number: Array
  ) -> tuple[Training, dict[str, Array]]:
    """One outer step after `length` steps of a head, and what is told of it."""
    own = jax.random.fold_in(jax.random.fold_in(key, SEGMENT), number)
    steps = jax.random.split(jax.random.fold_in(own, STEPS), length)  # a split of `own` itself has its purposes' keys
    classes = episodes.classes(episode_key(key, number), (self.tasks, self.classes))
    batches = jax.vmap(lambda key: episodes.batch(key, classes, jnp.int32(1), (0, self.inner.new_batch)))(steps)
    sizes = (self.inner.old_batch, self.inner.new_batch)
    query = episodes.batch(jax.random.fold_in(own, QUERY), classes, jnp.int32(1), sizes)
    head_key = jax.random.fold_in(own, HEADS)
    loss, slope = jax.value_and_grad(self.queried)(state.theta, head_key, batches, query)
    norm = optax.tree.norm(slope)
    updates, opt_state = self.tx.update(slope, state.opt_state, state.theta)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    moved = optax.apply_updates(state.theta, updates), opt_state
    params, opt_state = where(finite, moved, (state.theta, state.opt_state))
    place: Place = state.place._replace(episode=state.place.episode + 1, skipped=state.place.skipped + ~finite)
    told = {"loss": loss, "last": loss, "threshold": jnp.zeros(()), "episode": state.place.episode, "finite": finite}
    told |= {"step": jnp.int32(length), "norm": norm, "cell": jnp.zeros(()), "patient": jnp.bool_(False)}
    return Training(params, opt_state, (), place, state.unit), told
