"""The keywords of subnetwork selection: what each one is and may be."""

from typing import Annotated, NamedTuple

from cljax.declared import above, any_number, at_least, free, one_of
from cljax.methods.subnetwork.saliency import KINDS
from cljax.ops import masking
from cljax.types import Array

Number = Array | float  # which may be traced

BIASES = ("first", "per_task")
FORWARD = ("all_frozen", "similar")
WATCHED = ("scores", "last", "loss")


class Training(NamedTuple):
  """How an expert is trained on a task."""

  batch_size: Annotated[int, at_least(1, "rows a step", high=1_000_000)] = 32
  epochs: Annotated[int, at_least(1, "of training the whole expert on a task; 1 where boundaries are hidden")] = 5


class Room(NamedTuple):
  """How much there can be."""

  experts: Annotated[int, at_least(1, "room for so many; needing more stops the run", high=1_000)] = 4
  slots: Annotated[
    int,
    at_least(
      0,
      "room for so many tasks, likewise; 0 is T, or 2 T where boundaries are hidden (an onset may be false)",
      high=4_096,
    ),
  ] = 0


class Selection(NamedTuple):
  """Which weights are a task's own."""

  score: Annotated[
    str, one_of(KINDS, "of a weight, the mean over rows: grad |dL/dw|, taylor |w dL/dw|, fisher (dL/dw)^2")
  ] = "grad"
  score_rows: Annotated[int, at_least(1, "rows that are scored: the first of a task, or the latest of the window")] = (
    512
  )
  select: Annotated[
    str,
    one_of(
      masking.KINDS,
      "a layer's weights for a task: topk, the largest share `fractions`; threshold, scores over `above` times the "
      "layer's mean, at most half of it; accuracy, the smallest share of a ladder that keeps `keep_accuracy` of the "
      "whole net's accuracy on every tenth row (row % 10 == 0)",
    ),
  ] = "topk"
  fractions: Annotated[tuple[float, ...], above(0, "the share of each layer, from first to last", high=1)] = (
    0.0255,
    0.04,
    0.1,
  )
  above: Annotated[Number, at_least(0, "times a layer's mean score, for `threshold`")] = 3.0
  keep_accuracy: Annotated[Number, at_least(0, "of the whole net's, for `accuracy`")] = 0.97
  retrain: Annotated[int, at_least(0, "steps that train the chosen weights alone; 0 takes them as they are")] = 230


class Sharing(NamedTuple):
  """When a task is known, when an expert is shared, and what is shared then."""

  recurring_below: Annotated[
    Number, any_number("nats; a task whose first rows have at most this loss through a known subnetwork is it again")
  ] = 0.8
  overlap_from: Annotated[Number, any_number("of the scores with some task of an expert, over hidden layers")] = 0.25
  deviation_up_to: Annotated[Number, any_number("likewise; the expert of a task within both bounds is shared")] = 2.0
  capacity_hidden: Annotated[
    Number, at_least(0, "the most that may be frozen of a hidden layer to share it", high=1)
  ] = 0.6
  capacity_output: Annotated[Number, at_least(0, "likewise of the last layer", high=1)] = 0.9
  forward_from: Annotated[
    str,
    one_of(
      FORWARD,
      "the frozen weights that a task uses beside its own: all_frozen of its expert, or those of its similar tasks, by "
      "`overlap_from` and `deviation_up_to`",
    ),
  ] = "all_frozen"
  bias: Annotated[
    str, one_of(BIASES, "first: biases move in an expert's first task only; per_task: each task keeps its own")
  ] = "first"


class Onsets(NamedTuple):
  """How the beginning of a task is noticed where boundaries are hidden."""

  watch: Annotated[
    str,
    one_of(
      WATCHED,
      "what an onset raises: scores, the mean of |dL/dw| over all hidden weights; last, over the mask of the task "
      "before; loss",
    ),
  ] = "scores"
  pseudo_labels: Annotated[bool, free("the net's own answers stand for the labels of what is watched")] = False
  onset_factor: Annotated[Number, above(0, "a batch fires above this times a quantile of recent ones")] = 4.0
  onset_quantile: Annotated[Number, at_least(0, "that quantile", high=1)] = 0.99
  onset_history: Annotated[int, at_least(1, "recent batches that it is taken of", high=1_000_000)] = 50
  onset_batches: Annotated[int, at_least(1, "so many firing batches in a row are an onset", high=1_000)] = 2
  warmup: Annotated[int, at_least(0, "batches after an onset in which none fires")] = 100
  decide_after: Annotated[
    int,
    at_least(
      1,
      "batches, at least `onset_batches`, that decide what the new task is; none of them is learnt before",
      high=1_000,
    ),
  ] = 2
  window: Annotated[
    int,
    at_least(
      1,
      "recent rows of which a task is consolidated; every tenth (row % 10 == 0) is kept from its retraining",
      high=10_000_000,
    ),
  ] = 4096
