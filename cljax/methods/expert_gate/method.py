"""Expert Gate (Aljundi, Chakravarty and Tuytelaars 2017, Algorithm 1, https://arxiv.org/abs/1611.06194).

For each new task, in this order:

1. an undercomplete autoencoder learns to reconstruct the task's features (section 3.1);
2. its error and those of all earlier autoencoders on the task's validation rows give the relatedness to each earlier
   task, Rel = 2 - Er_a / Er_k (3.3);
3. a new expert starts as a copy of the most related one and learns the task, by learning without forgetting where the
   relatedness exceeds the threshold, else by fine-tuning. In LwF's place may stand elastic weight consolidation, which
   the paper doesn't have (`auto_ewc`).

A picture of no known task goes to the expert whose autoencoder reconstructs it best (3.2); nothing learnt earlier ever
changes. Deviations from the paper, each an option: the encoder sees the target less its task's mean (`center`), for
with inputs in (0, 1) most ReLU codes die; Adam in place of Adagrad; an autoencoder stops at its validation plateau.
"""

import posixpath
import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.declared import above, any_number, at_least, declared, free, one_of
from cljax.errors import ConfigError
from cljax.loops import mean_over
from cljax.ops import gate
from cljax.ops.losses import probabilities
from cljax.ops.trees import parameters
from cljax.pieces import experts as grown
from cljax.pieces.experts import EWC, FINETUNE, LWF, MODES, ExpertLearner, Experts, Training, expert_learner
from cljax.pieces.gates import autoencoders as gates_of
from cljax.pieces.gates.autoencoders import Autoencoders, GateLearner, Gates, gate_learner
from cljax.types import Array, Key, Method, Outputs, Routes, Serve, Spec, View


@flax.struct.dataclass
class State:
  """The gates and the experts of all tasks."""

  gates: Gates
  experts: Experts
  relatedness: Array  # [T, T + 1] Rel(row's task, column's), NaN where it was not asked; column T is the root


BY_RELATEDNESS = {"auto": LWF, "auto_ewc": EWC}  # what is taken above the threshold


class Parents(NamedTuple):
  """Where a new expert starts, and how it learns."""

  parent: Annotated[
    str, one_of(("related", "previous", "none"), "where an expert starts: at the most related, the one before, nowhere")
  ] = "related"
  mode: Annotated[
    str,
    one_of(
      (*BY_RELATEDNESS, *MODES[1:]),
      "how it learns; auto: LwF above the threshold, else by fine-tuning; auto_ewc: EWC in place of LwF",
    ),
  ] = "auto"
  threshold: Annotated[Array | float, any_number("of the relatedness")] = 0.85

  @property
  def consolidates(self) -> bool:
    """Whether an expert may learn by EWC."""
    return self.mode == MODES[EWC] or BY_RELATEDNESS.get(self.mode) == EWC


class Answers(NamedTuple):
  """Who answers where the task is not told."""

  activate: Annotated[
    str, one_of(("one", "several"), "one expert; or the mean of several whose labels are those of the best")
  ] = "one"
  activate_above: Annotated[Array | float, at_least(0, "the probability above which several are active", 1)] = 0.1
  gate_temperature: Annotated[Array | float, above(0, "t of softmax(-error / t), the probabilities")] = 2.0


class ExpertGate(NamedTuple):
  """The functions of the method."""

  spec: Spec
  gates: GateLearner
  experts: ExpertLearner
  parents: Parents
  answers: Answers
  root: str

  def init(self, key: Key) -> State:
    """Before the first task."""
    T = self.spec.T
    begin, grow = jax.random.split(key)
    return State(self.gates.init(begin), self.experts.init(grow), jnp.full((T, T + 1), jnp.nan, jnp.float32))

  def reads(self) -> dict[str, str]:
    """part -> file of the root, where there is one."""
    return {"gate": posixpath.join(posixpath.dirname(self.root), "gate.npz"), "expert": self.root} if self.root else {}

  def load(self, state: State, parts: Mapping[str, Mapping[str, Array]]) -> State:
    """The state with the root in its slot, where there is one.

    Raises:
      ConfigError: files of other shapes.
    """
    if not self.root:
      return state
    gates = gates_of.with_root(state.gates, parts["gate"], expert_of(self.root), self.reads()["gate"])
    return state.replace(gates=gates, experts=grown.with_root(state.experts, parts["expert"], self.root))

  def decide(self, key: Key, state: State, view: View) -> tuple[State, Array, Array]:
    """Steps 2 and 3: relatedness on the new task's validation rows, then parent and mode."""
    t, T, (parent, mode, threshold) = view.t, self.spec.T, self.parents
    error = mean_over(lambda batch: self.gates.errors(state.gates, batch.x), view, view.tasks.valid)
    earlier = state.gates.trained & (jnp.arange(T + 1) != t)
    related = jnp.where(earlier, gate.relatedness(error, error[t]), jnp.nan)
    state = state.replace(relatedness=state.relatedness.at[t].set(related))
    most = gate.gate_choice(-related)  # -1 where no relatedness is finite
    chosen = most if parent == "related" else grown.chained(parent, t, T if self.root else -1)
    if mode not in BY_RELATEDNESS:
      return state, chosen, jnp.int32(MODES.index(mode))
    return state, chosen, jnp.where(related[jnp.maximum(chosen, 0)] > threshold, BY_RELATEDNESS[mode], FINETUNE)

  def apply(self, state: State, x: Array, slot: Array | None) -> Outputs:
    """What the experts of the given slots answer, or those that the gates choose."""
    if slot is not None:
      return self.experts.apply(state.experts, x, slot)
    routes = self.route(self.gates.part(state.gates), x)
    out = self.experts.apply(state.experts, x, routes.slot)
    if self.answers.activate == "several":
      mean = self.average(state.experts, x, routes)
      return out._replace(logits=jnp.log(jnp.maximum(mean, 1e-30)))
    return out

  def route(self, part: Any, x: Array) -> Routes:
    """Who answers the rows of x [B, ...], by the gates of a part."""
    errors = self.gates.errors_of(part["autoencoders"], part["standard"], part["trained"], x)
    return Routes(gate.gate_choice(errors), gate.gate_probabilities(errors, self.answers.gate_temperature), errors)

  def average(self, experts: Experts, x: Array, routes: Routes) -> Array:
    """[B, C] the mean probabilities of all active experts that speak of the same labels as the best."""
    T = self.spec.T
    classes, labels = experts.classes[:T], experts.labels[:T]
    active = gate.active(routes.slot, routes.probabilities, classes, labels, self.answers.activate_above)
    each = probabilities(self.experts.apply_all(experts, x), classes[:, None])
    return jnp.einsum("bt,tbc->bc", active.astype(jnp.float32), each) / active.sum(axis=1, keepdims=True)

  def parts(self, state: State) -> dict[str, Any]:
    """The gates as one part, and each expert as one."""
    experts = {f"expert_{k}": grown.part(state.experts, k) for k in range(self.spec.T)}
    return {"gate": self.gates.part(state.gates)} | experts

  def answer(self, part: Any, x: Array) -> Array:
    """[B, C] the logits of the expert of a part."""
    return self.experts.answer(part["net"], part["collections"], x).logits

  def report(self, state: State) -> dict[str, Array]:
    """What is told after each task."""
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

  def faults(self, state: State) -> dict[str, Array]:
    """A task without validation rows; an autoencoder that diverges."""
    return self.gates.faults(state.gates, "method")


def expert_of(root: str) -> int:
  """The slot that the expert of a file had.

  Raises:
    ConfigError: a file of another name.
  """
  found = re.fullmatch(r"expert_(\d{1,9})\.npz", posixpath.basename(root))
  if not found:
    raise ConfigError(f"config.method.root={root!r} must name an expert of a finished run: W/parts/seed_0/expert_0.npz")
  return int(found[1])


@declared("method", given=3)
def expert_gate(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  training: Training = Training(),
  parents: Parents = Parents(),
  autoencoders: Autoencoders = Autoencoders(),
  answers: Answers = Answers(),
  root: Annotated[
    str, free("file of a pre-trained expert, `W/parts/seed_0/expert_0.npz` of a finished run, `gate.npz` beside it")
  ] = "",
) -> Method:
  """A network of experts with autoencoder gates.

  The root's expert may be a parent, never an answer, and its standardisation serves all tasks.

  Args:
    net, tx: of one expert, with one head; trained afresh for each task.

  Raises:
    ConfigError: choices or shapes that do not fit, both named; a root that is no expert's file.
  """
  if parents.mode in BY_RELATEDNESS and parents.parent == "none":
    mode = f"config.method.mode={MODES[FINETUNE]!r}"
    raise ConfigError(f"config.method.parent='none' leaves nothing to learn from: set {mode}")
  if root:
    expert_of(root)
  gates = gate_learner(spec, autoencoders, has_root=bool(root))
  learner = expert_learner(net, tx, spec, training, parents.consolidates)
  it = ExpertGate(spec, gates, learner, parents, answers, root)
  return Method(
    it.init,
    (gates.phase(), *it.experts.phases(it.decide)),
    it.apply,
    it.report,
    it.faults,
    parts=it.parts,
    load=it.load,
    reads=it.reads(),
    infers=True,
    told=True,
    serve=Serve(it.route, it.answer),
    needs_boundaries=True,
    needs_valid=True,
  )
