"""Expert Gate (Aljundi, Chakravarty and Tuytelaars 2017, Algorithm 1).

For each new task, in this order:

1. an undercomplete autoencoder learns to reconstruct the task's features (section 3.1);
2. its error and those of all earlier autoencoders on the task's validation rows give the relatedness to each earlier
   task, Rel = 2 - Er_a / Er_k (3.3);
3. a new expert starts as a copy of the most related one and learns the task, by learning without forgetting where the
   relatedness exceeds the threshold, else by fine-tuning.

A picture of no known task goes to the expert whose autoencoder reconstructs it best (3.2); nothing learnt earlier ever
changes. Deviations from the paper, each an option: the encoder sees the target less its task's mean (`center`), for
with inputs in (0, 1) most ReLU codes die; Adam in place of Adagrad; an autoencoder stops at its validation plateau.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.errors import ConfigError, choose
from cljax.fit import mean_over
from cljax.methods.expert_gate import autoencoders
from cljax.nets.features import FeatureFn
from cljax.ops import gate
from cljax.ops.losses import probabilities
from cljax.ops.trees import parameters
from cljax.pieces import experts as grown
from cljax.types import Array, Key, Method, Outputs, Routes, Serve, Spec, View


@flax.struct.dataclass
class State:
  gates: autoencoders.Gates
  experts: grown.Experts
  relatedness: Array  # [T, T + 1] Rel(row's task, column's), NaN where it was not asked; column T is the root


def expert_gate(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: int = 64,
  epochs: int = 5,
  warmup_epochs: int = 1,
  parent: str = "related",
  mode: str = "auto",
  threshold: float = 0.85,
  distill_weight: float = 1.0,
  distill_temperature: float = 2.0,
  phi: str | FeatureFn = "flatten",
  code: int = 100,
  center: bool = True,
  autoencoder_batch: int = 64,
  autoencoder_epochs: int = 30,
  patience: int = 3,
  autoencoder_optimizer: str = "adam",
  autoencoder_lr: float = 1e-3,
  autoencoder_decay: float = 0.0,
  autoencoder_init: str = "glorot",
  gate_temperature: float = 2.0,
  activate: str = "one",
  activate_above: float = 0.1,
  root: str = "",
) -> Method:
  """A network of experts with autoencoder gates.

  Args:
    net, tx: of one expert, with one head; trained afresh for each task.
    batch_size, epochs, warmup_epochs, distill_weight, distill_temperature: of an expert, see `pieces.experts.Training`.
    parent: where an expert starts: the most `related` task's, the `previous` one's, or `none`, from scratch.
    mode: `auto`, LwF above the threshold and fine-tuning below or at it; or always `lwf` or `finetune`.
    threshold: of the relatedness.
    phi: frozen feature function, a name of `nets.features.FEATURES` or pictures [B, ...] -> [B, d].
    code: hidden units of an autoencoder.
    center: the encoder sees target less mean target, and the decoder's bias starts at logit(mean); else the target.
    autoencoder_batch, autoencoder_epochs, patience: it stops after `patience` epochs without a lower validation loss
      and keeps the best epoch; its steps still run.
    autoencoder_optimizer, autoencoder_lr, autoencoder_decay: `adam` or `adagrad`; decay of the weights.
    autoencoder_init: `glorot`, `he`, or the authors' `sparse`.
    gate_temperature: t of softmax(-error / t).
    activate: `one` expert answers; or `several`: all whose probability exceeds `activate_above`, averaged, where their
      labels coincide with those of the best.
    root: file of a pre-trained expert, `W/parts/seed_0/expert_0.npz` of a finished run, `gate.npz` beside it. It may be
      a parent, never an answer, and its standardisation serves all tasks.

  Raises:
    ConfigError: an unknown choice, or shapes that do not fit, both named.
  """
  choose("config.method.parent", parent, ("related", "previous", "none"))
  choose("config.method.mode", mode, ("auto", "finetune", "lwf"))
  choose("config.method.activate", activate, ("one", "several"))
  if mode == "auto" and parent == "none":
    raise ConfigError("config.method.parent='none' leaves nothing to learn from: set config.method.mode='finetune'")
  T = spec.T
  gating = autoencoders.autoencoder_gates(
    spec,
    phi=phi,
    code=code,
    center=center,
    batch_size=autoencoder_batch,
    epochs=autoencoder_epochs,
    patience=patience,
    optimizer=autoencoder_optimizer,
    lr=autoencoder_lr,
    decay=autoencoder_decay,
    kernel_init=autoencoder_init,
    temperature=gate_temperature,
    has_root=bool(root),
  )
  training = grown.Training(batch_size, epochs, warmup_epochs, distill_weight, distill_temperature)
  growing = grown.growing(net, tx, spec, training)

  def init(key: Key) -> State:
    begin, grow = jax.random.split(key)
    gates, experts = gating.init(begin), growing.init(grow)
    if root:
      gates, experts = autoencoders.with_root(gates, root), grown.with_root(experts, root)
    return State(gates, experts, jnp.full((T, T + 1), jnp.nan, jnp.float32))

  def decide(key: Key, state: State, view: View) -> tuple[State, Array, Array]:
    """Steps 2 and 3: relatedness on the new task's validation rows, then parent and mode."""
    t = view.t
    error = mean_over(lambda batch: gating.errors(state.gates, batch.x), view, view.tasks.valid)
    earlier = state.gates.trained & (jnp.arange(T + 1) != t)
    related = jnp.where(earlier, gate.relatedness(error, error[t]), jnp.nan)
    state = state.replace(relatedness=state.relatedness.at[t].set(related))
    most = gate.gate_choice(-related)  # -1 where no relatedness is finite
    chosen = most if parent == "related" else grown.chained(parent, t, T if root else -1)
    if mode != "auto":
      return state, chosen, jnp.int32(grown.MODES.index(mode))
    return state, chosen, jnp.where(related[jnp.maximum(chosen, 0)] > threshold, grown.LWF, grown.FINETUNE)

  def apply(state: State, x: Array, slot: Array | None) -> Outputs:
    if slot is not None:
      return growing.apply(state.experts, x, slot)
    routes = gating.route(gating.export(state.gates), x)
    if activate == "several":
      return average(state.experts, x, routes)
    return growing.apply(state.experts, x, routes.slot)

  def average(experts: grown.Experts, x: Array, routes: Routes) -> Outputs:
    """The mean probabilities of all active experts that speak of the same labels as the best."""
    active = gate.active(routes, experts.classes[:T], experts.labels[:T], activate_above)
    each = probabilities(growing.apply_all(experts, x), experts.classes[:T, None])
    mean = jnp.einsum("bt,tbc->bc", active.astype(jnp.float32), each) / active.sum(axis=1, keepdims=True)
    return growing.apply(experts, x, routes.slot)._replace(logits=jnp.log(jnp.maximum(mean, 1e-30)))

  def parts(state: State) -> dict[str, Any]:
    return {"gate": gating.export(state.gates)} | {f"expert_{k}": grown.part(state.experts, k) for k in range(T)}

  def report(state: State) -> dict[str, Array]:
    gates = state.gates
    return {
      "parameters": parameters((state.experts.store, gates.store)),
      "memory_bytes": jnp.int32(0),
      "relatedness": state.relatedness,
      "parent": state.experts.parent,
      "mode": state.experts.mode,
      "valid_error": gates.valid_error,
      "dead_units": gates.dead,
      "lost_rows": gates.lost,
      "constant_features": gates.standard.constant,
      "autoencoder_epochs": gates.epochs,
    }

  def faults(state: State) -> dict[str, Array]:
    best = state.gates.best
    return {
      "stream.valid_per_task (or valid_share)": state.gates.blind,
      "method.autoencoder_lr": (best.waited > 0) & ~jnp.isfinite(best.loss),
    }

  serve = Serve(gating.route, lambda part, x: growing.answer(part["net"], x))
  phases = (gating.phase, *growing.phases(decide))
  return Method(init, phases, apply, report, faults, parts=parts, infers=True, serve=serve, told=True)
