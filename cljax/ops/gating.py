"""Choosing experts: gates from router logits, usage, and weights for experts that nobody uses.

Each function works on the last axis, E experts, whatever stands before it. Formulas: Shazeer et al. 2017 (noisy top-k
and its auxiliary losses), Maziarz et al. 2019 (Gumbel-matrix routing).
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from cljax.types import Array, Key


def top_k_mask(logits: Array, k: int) -> Array:
  """[..., E] bool: the `k` largest entries, ties to the lower index; all of them where k >= E."""
  chex.assert_type(logits, float)
  E = logits.shape[-1]
  if k >= E:
    return jnp.ones(logits.shape, bool)
  index = jnp.arange(E)
  larger = logits[..., None, :] > logits[..., :, None]
  tied_before = (logits[..., None, :] == logits[..., :, None]) & (index[None, :] < index[:, None])
  return (larger | tied_before).sum(axis=-1) < k


def masked_softmax(logits: Array, mask: Array) -> Array:
  """Softmax over the entries of `mask`, exactly 0 elsewhere (also in its gradient)."""
  chex.assert_type([logits, mask], [float, bool])
  return jax.nn.softmax(logits, axis=-1, where=mask)


def top_k_gates(logits: Array, k: int) -> Array:
  """softmax(KeepTopK(logits, k)): what `none` samples, and what evaluation uses for every sampler."""
  return masked_softmax(logits, top_k_mask(logits, k))


def noisy_topk(normal: Array, logits: Array, sigma: Array, k: int) -> Array:
  """softmax(KeepTopK(H, k)) with H = logits + sigma * normal."""
  chex.assert_equal_shape([normal, logits])
  return top_k_gates(logits + sigma * normal, k)


def gumbel_topk(gumbel: Array, logits: Array, scale: Array, k: int) -> Array:
  """The top k of logits + scale * gumbel, weighted by the softmax of the clean logits over them."""
  chex.assert_equal_shape([gumbel, logits])
  return masked_softmax(logits, top_k_mask(logits + scale * gumbel, k))


def gumbel_matrix(logistic: Array, logits: Array, temperature: Array) -> Array:
  """Each expert on or off by itself with probability sigmoid(logit), active ones averaged; straight-through.

  The difference of two Gumbel variables is logistic, so soft = sigmoid((logit + logistic) / temperature); the sample is
  soft > 1/2 forwards and soft backwards, divided by max(number active, 1).
  """
  chex.assert_equal_shape([logistic, logits])
  soft = jax.nn.sigmoid((logits + logistic) / temperature)
  hard = (soft > 0.5).astype(soft.dtype)
  sample = jax.lax.stop_gradient(hard - soft) + soft
  return sample / jnp.maximum(sample.sum(axis=-1, keepdims=True), 1)


# (noise, logits [..., E], sigma [..., E] or [] of the noise, k, temperature []) -> gates [..., E]
SAMPLERS: dict[str, Callable[[Array, Array, Array, int, Array], Array]] = {
  "noisy_topk": lambda noise, logits, sigma, k, temperature: noisy_topk(noise, logits, sigma, k),
  "gumbel_topk": lambda noise, logits, sigma, k, temperature: gumbel_topk(noise, logits, sigma, k),
  "gumbel_matrix": lambda noise, logits, sigma, k, temperature: gumbel_matrix(noise, logits, temperature),
  "none": lambda noise, logits, sigma, k, temperature: top_k_gates(logits, k),
}

# The `noise` of each sampler: (key, shape) -> independent numbers of that shape.
NOISES: dict[str, Callable[[Key, tuple[int, ...]], Array]] = {
  "noisy_topk": jax.random.normal,
  "gumbel_topk": jax.random.gumbel,
  "gumbel_matrix": jax.random.logistic,
  "none": lambda key, shape: jnp.zeros(shape),
}


def begin_row(how: str, key: Key, router: Array, t: Array) -> Array:
  """R [L, T, E] as task t begins: its row as it is (`noise`), the `mean` of earlier rows, or `ties`, a random order."""
  chex.assert_rank([router, t], [3, 0])
  if how == "noise":
    return router
  if how == "ties":
    return router.at[:, t].set(1e-6 * jax.random.uniform(key, router[:, 0].shape))
  earlier = (jnp.arange(router.shape[1]) < t)[None, :, None]
  mean = jnp.where(earlier, router, 0).sum(axis=1) / jnp.maximum(t, 1)
  return router.at[:, t].set(jnp.where(t > 0, mean, router[:, t]))


def unused_gates(used: Array) -> Array:
  """[..., E] equal weights over the experts that are not `used` [..., E] bool; all zero where none is left."""
  chex.assert_type(used, bool)
  unused = ~used
  return unused / jnp.maximum(unused.sum(axis=-1, keepdims=True), 1)


def squared_variation(values: Array) -> Array:
  """CV(values)^2 over the last axis: variance over squared mean, 0 where the mean is 0."""
  chex.assert_type(values, float)
  mean = values.mean(axis=-1)
  return values.var(axis=-1) / jnp.where(mean == 0, 1, mean**2)


def importance_loss(gates: Array, live: Array) -> Array:
  """CV(sum over live rows [B] of the gates)^2; gates [B, E] (Shazeer et al. 2017, eq. 6)."""
  chex.assert_rank([gates, live], [2, 1])
  return squared_variation(jnp.where(live[:, None], gates, 0).sum(axis=0))


def load_loss(logits: Array, noisy: Array, sigma: Array, k: int, live: Array) -> Array:
  """CV(load)^2 with the smooth load of Shazeer et al. 2017, eqs. 8 to 10.

  Row x puts P(x, e) = Phi((logit_e - the k-th largest noisy logit of the others) / sigma_e) on expert e.

  Args:
    logits, noisy, sigma: [B, E]; `noisy` are the logits that were compared.
    live: [B], the rows that count.
  """
  chex.assert_rank([logits, noisy, sigma, live], [2, 2, 2, 1])
  E = logits.shape[-1]
  if k >= E:
    return jnp.float32(0)  # every expert is always chosen: the load is equal
  others = jnp.where(jnp.eye(E, dtype=bool), -jnp.inf, noisy[..., None, :])
  threshold = jnp.sort(others, axis=-1)[..., E - k]
  chance = jax.scipy.stats.norm.cdf((logits - threshold) / sigma)
  return squared_variation(jnp.where(live[:, None], chance, 0).sum(axis=0))


def balancing_losses(
  name: str, noise: Array, gates: Array, logits: Array, sigma: Array, k: int, live: Array
) -> list[Array]:
  """The `importance` loss, the `load` loss or `both` of one layer's draw; an empty list for `none`.

  Args:
    noise, gates, logits, sigma: [B, E], the draw of noisy_topk and what it was made of.
    live: [B], the rows that count.
  """
  chex.assert_rank([gates, logits, live], [2, 2, 1])
  losses = []
  if name in ("importance", "both"):
    losses.append(importance_loss(gates, live))
  if name in ("load", "both"):
    losses.append(load_loss(logits, logits + sigma * noise, sigma, k, live))
  return losses
