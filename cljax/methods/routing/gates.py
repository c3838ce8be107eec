"""Gates [B, E] of each layer: those of evaluation, those drawn in training, and the experts that they use."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cljax.methods.routing.keywords import Balancing, Routing, Sampling
from cljax.ops import gating
from cljax.types import Array, Batch, Clock, Key


class Gates(NamedTuple):
  """What gates rows get from the router R [L, T, E], a row of logits for each task in each layer."""

  ks: tuple[int, ...]  # experts active in each layer
  tasks: int
  experts: int
  routes: Routing
  sampling: Sampling
  balancing: Balancing

  @property
  def learns_noise(self) -> bool:
    """Whether N is learned, whose softplus scales the noise."""
    return self.sampling.sample == "noisy_topk" and self.sampling.learned_noise

  def kept(self, router: Array, task: Array) -> list[Array]:
    """One [B, E] a layer: the gates of evaluation, without noise."""
    return [self.routes.gate_scale * gating.top_k_gates(router[l], k)[task] for l, k in enumerate(self.ks)]

  def usage(self, router: Array, used: Array, t: Array) -> Array:
    """`used` [L, T, E] with row t, or all rows so far, set to the top k of R."""
    if not self.routes.refresh_all_seen:
      top = jnp.stack([gating.top_k_mask(router[l, t], k) for l, k in enumerate(self.ks)])
      return used.at[:, t].set(top)
    top = jnp.stack([gating.top_k_mask(router[l], k) for l, k in enumerate(self.ks)])
    return jnp.where((jnp.arange(self.tasks) <= t)[None, :, None], top, used)

  def noise(self, keys: Key, task: Array, place: Array) -> Array:
    """[B, L, E]: what the gates of rows are drawn with, by the key [B] of each.

    Under `step` a row's noise is named by its task [B], so that rows of one task share it: one draw of the whole
    matrix, of which only the rows that the batch uses are drawn. Under `example` it is named by its place [B].
    """
    layers, sampler = jnp.arange(len(self.ks)), gating.NOISES[self.sampling.sample]

    def of_row(key, name):
      named = jax.vmap(lambda l: jax.random.fold_in(jax.random.fold_in(key, l), name))(layers)
      return jax.vmap(lambda key: sampler(key, (self.experts,)))(named)

    return jax.vmap(of_row)(keys, task if self.sampling.draw == "step" else place)

  def drawn(
    self, noise: Array, router: Array, noise_logits: Array, batch: Batch, clock: Clock
  ) -> tuple[list[Array], Array]:
    """One [B, E] a layer from noise [B, L, E], and the balancing loss [] of the draw, over live rows."""
    gates, loss, task, sampling = [], jnp.float32(0), batch.task, self.sampling
    cooled = jnp.maximum(sampling.temperature_min, sampling.temperature / jnp.sqrt(clock.total + 1.0))
    ones = jnp.ones((self.tasks, self.experts))
    for l, k in enumerate(self.ks):
      sigma = sampling.noise * (jax.nn.softplus(noise_logits[l]) if self.learns_noise else ones)
      logits, sigma = router[l][task], sigma[task]
      sample = gating.SAMPLERS[sampling.sample](noise[:, l], logits, sigma, k, cooled)
      gates.append(self.routes.gate_scale * sample)
      named = self.balancing.auxiliary
      for each in gating.balancing_losses(named, noise[:, l], gates[l], logits, sigma, k, batch.live):
        loss += self.balancing.auxiliary_weight * each
    return gates, loss
