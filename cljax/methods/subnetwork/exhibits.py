"""What a report shows of tasks that own frozen subnetworks, and of a search for where tasks begin."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cljax.metrics import spread
from cljax.report.exhibits import Arrays, Exhibit, Result, Summary
from cljax.report.plots import canvas, captioned


class Onsets(NamedTuple):
  """What a search for boundaries found, against where they were."""

  delay: tuple[int, ...]  # batches from the first one with a new row to the one that decides, of each found
  missed: int
  false: int


def match(edges: Sequence[int], decided: Sequence[int]) -> Onsets:
  """Each true edge and the first decision from it on, before the next edge; other decisions are false.

  Args:
    edges: first batch with any row of the tasks 2 to T.
    decided: batches of the decisions.
  """
  delay, missed, used = [], 0, 0
  for i, edge in enumerate(edges):
    end = edges[i + 1] if i + 1 < len(edges) else np.inf
    own = [step for step in decided if edge <= step < end]
    missed += not own
    used += bool(own)
    delay += [own[0] - edge] if own else []
  return Onsets(tuple(int(d) for d in delay), missed, len(decided) - used)


def onsets_of(result: Result) -> list[Onsets]:
  """Of each seed, for a method that was not told where tasks begin and a result that knows its training rows."""
  batch, found = result["config"]["method"]["batch_size"], []
  for rows, decided in zip(result["train_rows"], result["report"]["onset_step"], strict=True):
    edges = np.cumsum(rows)[:-1] // batch
    found.append(match(edges.tolist(), [step for step in decided if step >= 0]))
  return found


def hidden_frozen(result: Result) -> list[float]:
  """[S] frozen share of the hidden weights, mean over the experts in use."""
  shares = np.array(result["report"]["frozen_hidden"], float)
  expert = np.array(result["report"]["expert"])
  return [float(share[: max(own.max() + 1, 1)].mean()) for share, own in zip(shares, expert, strict=True)]


def after_consolidation(result: Result) -> tuple[list[float], list[float]]:
  """([S] forgetting, [S] loss by consolidation) where boundaries are found, means over the tasks 1 to T-2.

  Row k of the accuracies is the whole net's, row k + 1 the first of the consolidated subnetwork; the last task is
  consolidated before its own row.
  """
  R = np.array(result["accuracy"], float)
  tasks = np.arange(R.shape[2] - 1)
  whole, frozen, end = R[:, tasks + 1, tasks], R[:, tasks + 2, tasks], R[:, -1, tasks]
  return list((frozen - end)[:, :-1].mean(axis=1)), list((whole - frozen).mean(axis=1))


def frozen_columns(result: Result) -> dict[str, Summary | str]:
  """Experts in use, and the share of their hidden weights that is frozen."""
  experts = spread([float(np.max(own) + 1) for own in result["report"]["expert"]])
  return {"experts": experts, "hidden weights frozen": spread(hidden_frozen(result))}


def onset_columns(result: Result) -> dict[str, Summary | str]:
  """Onsets found, missed and false with their delays; with three tasks or more, what consolidation cost."""
  seeds = onsets_of(result)
  delays = [delay for seed in seeds for delay in seed.delay]
  edges = len(seeds) * (len(result["train_rows"][0]) - 1)
  span = f", delay {min(delays)} to {max(delays)}" if delays else ""
  found: dict[str, Summary | str] = {}
  found["onsets"] = f"{len(delays)} of {edges}, {sum(seed.false for seed in seeds)} false{span}"
  if len(result["train_rows"][0]) > 2:
    lost, given_up = after_consolidation(result)
    found["forgetting once consolidated"] = spread(lost)
    found["lost by consolidation"] = spread(given_up)
  return found


def frozen_figure(arrays: Arrays, title: str) -> Figure:
  """Frozen share of each layer after each task (the paper's Figure 3a), mean over the experts in use and seeds."""
  shares, expert = arrays["frozen_share"], arrays["expert"]  # [S, T, E, L], [S, T, slots]
  used = np.arange(shares.shape[2]) <= expert.max(axis=2)[..., None]
  mean = (np.where(used[..., None], shares, 0).sum(axis=2) / np.maximum(used.sum(axis=2), 1)[..., None]).mean(axis=0)
  figure, axes = canvas(5.5, 4)
  for l in range(mean.shape[1]):
    name = "output layer" if l == mean.shape[1] - 1 else f"hidden layer {l + 1}"
    axes[0, 0].plot(range(1, len(mean) + 1), 100 * mean[:, l], marker="o", markersize=3, label=name)
  axes[0, 0].set(xlabel="after task", ylabel="frozen weights, %", ylim=(0, None))
  axes[0, 0].legend(frameon=False)
  axes[0, 0].grid(alpha=0.3)
  axes[0, 0].set_title(title, fontsize=10)
  return captioned(
    figure,
    f"{title}: the share of each layer's weights that belong to a task and no longer move, mean over the experts in "
    "use. At 100 % there is no room for another task.",
  )


def lines_figure(result: Result, title: str) -> Figure:
  """Accuracy of every task from its onset on (the paper's Figure 3b), mean over seeds."""
  R = np.array(result["accuracy"], float).mean(axis=0)
  figure, axes = canvas(5.5, 4)
  for task in range(R.shape[1]):
    axes[0, 0].plot(range(task + 1, len(R)), R[task + 1 :, task], marker="o", markersize=3, label=f"task {task + 1}")
  axes[0, 0].set(xlabel="after task", ylabel="test accuracy of its subnetwork")
  axes[0, 0].legend(frameon=False, fontsize=8, ncols=2)
  axes[0, 0].grid(alpha=0.3)
  axes[0, 0].set_title(title, fontsize=10)
  return captioned(
    figure,
    f"{title}: accuracy of each task through its own subnetwork from its beginning on. A subnetwork is frozen at its "
    "task's end, so its line is level after that.",
  )


def onset_figure(result: Result, arrays: Arrays, title: str) -> Figure:
  """Loss and watched score over the stream of the first seed, onsets marked (the paper's Figure 2)."""
  loss, score = arrays["trace_loss"][0, -1], arrays["trace_score"][0, -1]
  steps = -(-sum(result["train_rows"][0]) // result["config"]["method"]["batch_size"])
  x = (np.arange(len(loss)) + 0.5) * steps / len(loss)
  figure, axes = canvas(9, 5, 2, 1, sharex=True)
  axes[0, 0].plot(x, loss, linewidth=0.9)
  axes[1, 0].plot(x, score, linewidth=0.9, color="#D55E00")
  decided = [step for step in result["report"]["onset_step"][0] if step >= 0]
  for axis in axes[:, 0]:
    for step in decided:
      axis.axvline(step, color="black", linewidth=0.7, linestyle="--")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
  axes[0, 0].set_ylabel("training loss, mean")
  axes[1, 0].set(xlabel="batch (dashed: onsets decided)", ylabel="watched, largest")
  axes[0, 0].set_title(f"{title}, seed {result['seeds'][0]}", fontsize=10)
  return captioned(
    figure,
    f"{title}: what the method sees of a stream that does not tell where tasks begin: the training loss and the "
    "score it watches. Dashed lines are where it decided that a new task had begun.",
  )


def frozen_figures(result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """Frozen shares, and the accuracy of every task's subnetwork."""
  return {"frozen_share": frozen_figure(arrays, title), "task_lines": lines_figure(result, title)}


def onset_figures(result: Result, arrays: Arrays, title: str) -> dict[str, Figure]:
  """Where tasks were found to begin."""
  return {"onsets": onset_figure(result, arrays, title)}


SUBNETWORKS = Exhibit(("frozen_hidden", "expert"), columns=frozen_columns)
FROZEN = Exhibit(("frozen_share", "expert"), figures=frozen_figures)
ONSETS = Exhibit(("onset_step",), ("train_rows", "config.method.batch_size"), columns=onset_columns)
WATCHED = Exhibit(("trace_loss", "trace_score"), ("train_rows", "config.method.batch_size"), figures=onset_figures)
