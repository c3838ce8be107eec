"""A mixture of experts by subnetwork selection and masking (Kulkarni), with the boundaries of tasks given or detected.

For each task: a known one is recognised by the loss of its own subnetwork and reused (3.3); else the gradient scores
of its first rows on each expert are compared with those of its tasks, and an expert with a constructive overlap and
room is shared, or a new one opened (3.4). The expert trains while the subnetworks of its earlier tasks stay frozen.
Then the scores of the weights choose the task's own subnetwork (3.2), which is trained again by itself and frozen. At
test time the subnetwork that fits the batch best is taken (3.5): no label is needed.

Where the stream does not tell its boundaries, one loop does the same: batches whose score is far above the recent ones
are held back, and a few of them in a row are the onset of a task (3.1). The one before is then consolidated from a
window of recent rows, and the rows held back decide where the new one goes.

The paper leaves much open, and its code more. Here the update is held back and not the gradient (Adam's momentum would
move the weights); a task's function is its own mask together with all that was frozen before it, so that it stays the
same for ever; and the paper's least loss at test time, which needs labels, is the least entropy by default.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import optax
from flax import linen as nn

from cljax.data.sample import some_rows
from cljax.errors import ConfigError, choose
from cljax.methods.subnetwork.mixture import Mixture, Rules, mixture
from cljax.methods.subnetwork.watching import WATCHED, State, Watch, detected, nothing_seen, told
from cljax.types import Array, Batch, Clock, Info, Key, Method, Outputs, Phase, Spec, StepFn, View


def subnetwork(
  net: nn.Module,
  tx: optax.GradientTransformation,
  spec: Spec,
  *,
  batch_size: int = 32,
  epochs: int = 5,
  experts: int = 4,
  slots: int = 0,
  centred: bool = True,
  score: str = "grad",
  score_rows: int = 512,
  select: str = "topk",
  fractions: Sequence[float] = (0.0255, 0.04, 0.1),
  above: float = 3.0,
  keep_accuracy: float = 0.97,
  retrain: int = 230,
  recurring_below: float = 0.8,
  overlap_from: float = 0.25,
  deviation_up_to: float = 2.0,
  capacity_hidden: float = 0.6,
  capacity_output: float = 0.9,
  forward_from: str = "all_frozen",
  bias: str = "first",
  infer: str = "entropy",
  watch: str = "scores",
  pseudo_labels: bool = False,
  onset_factor: float = 4.0,
  onset_quantile: float = 0.99,
  onset_history: int = 50,
  onset_batches: int = 2,
  warmup: int = 100,
  decide_after: int = 2,
  window: int = 4096,
) -> Method:
  """Experts that share their weights among tasks by frozen subnetworks.

  Args:
    net: dense layers under one head over all classes.
    batch_size, epochs: of training the whole expert on a task. Where boundaries are hidden epochs is 1.
    experts: room for so many; needing more stops the run.
    slots: room for so many tasks, likewise; 0 is T, or 2 T where boundaries are hidden (an onset may be a false one).
    centred: the net sees (x - .5) / .5, else x.
    score: of a weight, the mean over rows of `grad` |dL/dw|, `taylor` |w dL/dw|, `fisher` (dL/dw)^2.
    score_rows: rows that are scored: the first of a task, or the latest of the window.
    select: a layer's weights for a task: `topk`, the largest share `fractions` (a number a layer); `threshold`, scores
      over `above` times the layer's mean, at most half of it; `accuracy`, the smallest share of a ladder that keeps
      `keep_accuracy` of the whole net's accuracy on every tenth row (`row % 10 == 0`).
    retrain: steps that train the chosen weights alone; 0 takes them as they are.
    recurring_below: nats; a task whose first rows have at most this loss through a known subnetwork is that task again.
    overlap_from, deviation_up_to: of the scores with some task of an expert, over its hidden layers, to share it.
    capacity_hidden, capacity_output: the most that may be frozen of a hidden and of the last layer to share it.
    forward_from: the frozen weights that a task uses beside its own: `all_frozen` of its expert, or those of its
      `similar` tasks, by the two bounds above.
    bias: `first`, biases move in an expert's first task only; `per_task`, each task keeps a copy of its own.
    infer: how the task is found from a batch, a rule of `ops.infer.RULES`; `oracle`: it has to be given.
    watch: what an onset raises: `scores`, the mean of |dL/dw| over all hidden weights; `last`, over the mask of the
      task before; `loss`. With `pseudo_labels` the net's own answers stand for the labels.
    onset_factor, onset_quantile, onset_history, warmup: as in `ops.onset.watch`.
    onset_batches: so many firing batches in a row are an onset.
    decide_after: batches, at least `onset_batches`, that decide what the new task is; none of them is learnt before.
    window: recent rows of which a task is consolidated; every tenth (`row % 10 == 0`) is kept from its retraining.

  Raises:
    ConfigError: an unknown choice, shares that do not fit the net, a stream with several heads, or several epochs of a
      stream that hides its boundaries.
  """
  choose("config.method.watch", watch, WATCHED)
  if spec.heads != 1 or not hasattr(net, "heads"):
    raise ConfigError(
      "config.method.name='subnetwork' needs dense layers under one head over all classes: set "
      "config.stream.name='subsets' and config.net.name='mlp'"
    )
  if not spec.boundaries and epochs != 1:
    raise ConfigError(
      f"config.method.epochs={epochs}: where boundaries are hidden the stream is seen once; set config.method.epochs=1 "
      "and repeat the rows of each task by config.stream.passes"
    )
  if decide_after < onset_batches:
    raise ConfigError(
      f"config.method.decide_after={decide_after}: at least config.method.onset_batches={onset_batches}"
    )
  S = slots or (spec.T if spec.boundaries else 2 * spec.T)
  rules = Rules(
    experts=experts,
    slots=S,
    decisions=spec.T if spec.boundaries else 2 * S,
    centred=centred,
    score=score,
    select=select,
    fractions=fractions,
    above=above,
    keep_accuracy=keep_accuracy,
    recurring_below=recurring_below,
    overlap_from=overlap_from,
    deviation_up_to=deviation_up_to,
    capacity_hidden=capacity_hidden,
    capacity_output=capacity_output,
    forward_from=forward_from,
    bias=bias,
    infer=infer,
  )
  mix = mixture(net, tx, spec, rules)
  if spec.boundaries:
    phases = given(mix, batch_size, epochs, score_rows, retrain)
    start = None
  else:
    watched = Watch(
      kind=watch,
      pseudo_labels=pseudo_labels,
      factor=onset_factor,
      quantile=onset_quantile,
      history=onset_history,
      batches=onset_batches,
      warmup=warmup,
      decide_after=decide_after,
      window=window,
      recurring_below=recurring_below,
    )
    start = nothing_seen(watched, S, batch_size)
    phases = detected(mix, net, watched, batch_size, score_rows, retrain)

  def init(key: Key) -> State:
    return State(mix.init(key), start)

  def apply(state: State, x: Array, slot: Array | None) -> Outputs:
    return mix.answer(state.learner, x, slot)

  def report(state: State) -> dict[str, Array]:
    return mix.report(state.learner) | (told(state.watching, spec) if state.watching is not None else {})

  def faults(state: State) -> dict[str, Array]:
    crowded = (state.learner.subnets.expert_of >= 0).all()
    return {"method.experts": state.learner.full & ~crowded, "method.slots": state.learner.full & crowded}

  return Method(init, phases, apply, report, faults, slots=S, infers=infer != "oracle", branches=True)


def given(mix: Mixture, batch_size: int, epochs: int, score_rows: int, retrain: int) -> tuple[Phase, ...]:
  """Decide (3.3, 3.4), train, choose the subnetwork (3.2), train it alone, freeze it."""

  def rows_of(view: View, wanted: Array) -> Batch:
    """The first `score_rows` rows of the task that are wanted [Nmax]."""
    size = view.tasks.train.idx.shape[-1]
    live = wanted & (jnp.arange(size) < view.tasks.train.count[view.t])
    at = jnp.flatnonzero(live, size=min(score_rows, size), fill_value=size)
    return some_rows(view, view.tasks.train, view.t, at, at < size)

  def first_rows(view: View) -> Batch:
    return rows_of(view, jnp.ones(view.tasks.train.idx.shape[-1], bool))

  def decide(key: Key, state: State, view: View, clock: Clock) -> State:
    none = jnp.zeros_like(state.learner.subnets.done)
    return state.replace(learner=mix.decide(key, state.learner, first_rows(view), view.t, none))

  def stepping(alone: bool) -> StepFn:
    def step(key: Key, state: State, batch: Batch, clock: Clock, view: View) -> tuple[State, Info]:
      learner, info = mix.learn(state.learner, batch, alone)
      return state.replace(learner=learner), info

    return step

  def choose_own(key: Key, state: State, view: View, clock: Clock) -> State:
    kept = rows_of(view, view.tasks.train.idx[view.t] % 10 == 0)
    return state.replace(learner=mix.choose_own(state.learner, first_rows(view), kept))

  def finish(key: Key, state: State, view: View, clock: Clock) -> State:
    return state.replace(learner=mix.finish(state.learner, first_rows(view)))

  def choose_and_finish(key: Key, state: State, view: View, clock: Clock) -> State:
    return finish(key, choose_own(key, state, view, clock), view, clock)

  leave = choose_own if retrain else choose_and_finish
  fit = Phase("fit", batch_size, stepping(False), epochs=epochs, enter=decide, exit=leave)
  alone = Phase("retrain", batch_size, stepping(True), steps=retrain, exit=finish)
  return (fit, alone) if retrain else (fit,)
