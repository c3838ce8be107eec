"""The keywords of routing, and which of them contradict each other."""

from typing import Annotated, Any, NamedTuple

from cljax.declared import above, at_least, free, one_of
from cljax.errors import ConfigError
from cljax.ops.gating import SAMPLERS
from cljax.types import Array


class Routing(NamedTuple):
  """The router R: how many experts a task has in a layer, and how R begins and moves."""

  k: Annotated[int | tuple[int, ...], at_least(1, "experts active in a layer, one number or one a layer")] = 4
  gate_scale: Annotated[Array | float, above(0, "factor on the gates that R gives, in training and in evaluation")] = (
    1.0
  )
  router_init: Annotated[Array | float, at_least(0, "standard deviation of the initial logits")] = 0.01
  router_lr: Annotated[
    Array | float | None, at_least(0, "rate of R and of its learned noise; none: lr, 0: the random router stays")
  ] = None
  new_rows: Annotated[
    str,
    one_of(
      ("noise", "mean", "ties"),
      "logits of a task that begins: as initialised, the mean of the earlier tasks', or equal up to a random order",
    ),
  ] = "noise"
  refresh_all_seen: Annotated[bool, free("read usage off R for all tasks so far, since replay moves their rows")] = (
    False
  )


class Sampling(NamedTuple):
  """How gates are drawn from R in training; usage and evaluation are the top k of R whatever is drawn.

  noisy_topk: top k of R + sigma * N(0, 1), softmax over the kept. gumbel_topk: top k of R + noise * Gumbel, softmax of
  the clean R over the kept. gumbel_matrix: each expert by itself, straight-through, no k. none: top k of R.
  """

  sample: Annotated[str, one_of(tuple(SAMPLERS), "how gates are drawn in training")] = "noisy_topk"
  noise: Annotated[Array | float, at_least(0, "scale of the noise of noisy_topk and gumbel_topk")] = 1.0
  learned_noise: Annotated[
    bool, free("sigma = noise * softplus(N), N learned from 0 (Shazeer et al. 2017); else sigma = noise")
  ] = True
  draw: Annotated[str, one_of(("step", "example"), "one draw of all of R each SGD step, or one for each row")] = "step"
  temperature: Annotated[
    Array | float, above(0, "of gumbel_matrix: temperature / sqrt(step + 1), steps counted over the stream")
  ] = 50.0
  temperature_min: Annotated[Array | float, above(0, "the least that the temperature of gumbel_matrix falls to")] = 0.5


class Balancing(NamedTuple):
  """Losses that spread rows over experts."""

  auxiliary: Annotated[
    str, one_of(("none", "importance", "load", "both"), "which of the losses of Shazeer et al. 2017")
  ] = "none"
  auxiliary_weight: Annotated[Array | float, at_least(0, "factor on each of them")] = 0.1


class Cotraining(NamedTuple):
  """Step 5 of the algorithm."""

  cotrain: Annotated[bool, free("take the step")] = True
  cotrain_lr: Annotated[Array | float | None, at_least(0, "the paper's alpha_c; none: lr")] = None
  cotrain_rows: Annotated[
    str, one_of(("union", "current"), "current and replayed rows as in Algorithm 1, or current as in the paper's prose")
  ] = "union"
  cotrain_update_heads: Annotated[bool, free("the step moves the heads too")] = True
  exhausted: Annotated[
    str,
    one_of(
      ("skip", "routed"),
      "where a layer has no unused expert: skip the step, or let that layer take its route with fixed weights, and "
      "skip only where no layer has one",
    ),
  ] = "skip"


def experts_by_layer(k: int | tuple[int, ...], net: Any) -> tuple[int, ...]:
  """k of each layer of a routed net.

  Raises:
    ConfigError: another net, more or fewer numbers than layers, or more than a layer has experts.
  """
  if not hasattr(net, "experts"):
    raise ConfigError("config.method.name='routing' needs layers of experts: set config.net.name='routed_mlp'")
  layers, experts = len(net.widths), net.experts
  ks = (k,) * layers if isinstance(k, int) else tuple(k)
  if len(ks) != layers:
    raise ConfigError(f"config.method.k={ks} has {len(ks)} numbers for {layers} layers; give one, or one a layer")
  for number in ks:
    if number > experts:
      raise ConfigError(
        f"config.method.k={number} must lie in 1..{experts}, the experts of a layer (config.net.experts)"
      )
  return ks


def check(sampling: Sampling, balancing: Balancing) -> None:
  """Refuses choices that contradict each other.

  Raises:
    ConfigError: a load without the noise that it is a probability of.
  """
  auxiliary, sample, noise = balancing.auxiliary, sampling.sample, sampling.noise
  if auxiliary not in ("load", "both"):
    return
  if sample != "noisy_topk":
    raise ConfigError(f"config.method.auxiliary={auxiliary!r} needs the noise of sample='noisy_topk', not {sample!r}")
  if isinstance(noise, float | int) and noise == 0:
    raise ConfigError(f"config.method.auxiliary={auxiliary!r} divides by the noise: set config.method.noise above 0")
