"""Figures of a meta-training: its loss and what ends its episodes (Figure 6 of Xiong, Ren and Urtasun 2019,
https://arxiv.org/abs/1910.04650)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cljax.report.plots import COLOURS, canvas

NAMES = ("segment", "loss", "threshold", "episode", "truncation")


def training_figures(result: Mapping[str, Any]) -> dict[str, Figure]:
  """Of the fields of a meta.json: {"training": loss and threshold, and episodes, over segments, with the number of
  unrolled steps where it varies}; {} where no segment was trained. A colour for each seed."""
  curves = [
    dict(zip(NAMES, seed, strict=True)) for seed in zip(*(result["curve"][name] for name in NAMES), strict=True)
  ]
  if not any(curve["segment"] for curve in curves):
    return {}
  figure, axes = canvas(9, 3.8, 1, 2)
  for s, (seed, curve) in enumerate(zip(result["seeds"], curves, strict=True)):
    colour = COLOURS[s % len(COLOURS)]
    axes[0, 0].plot(curve["segment"], curve["loss"], color=colour, linewidth=1, label=f"seed {seed}")
    if np.any(curve["threshold"]):
      axes[0, 0].plot(curve["segment"], curve["threshold"], color=colour, linestyle=":", linewidth=1)
    axes[0, 1].plot(curve["segment"], curve["episode"], color=colour, linewidth=1)
  axes[0, 0].set(xlabel="segment", ylabel="loss (dotted: threshold)", yscale="log")
  axes[0, 1].set(xlabel="segment", ylabel="episode")
  if len({steps for curve in curves for steps in curve["truncation"]}) > 1:
    twin = axes[0, 1].twinx()
    for s, curve in enumerate(curves):
      colour = COLOURS[s % len(COLOURS)]
      twin.step(curve["segment"], curve["truncation"], where="pre", color=colour, linestyle="--", linewidth=1)
    twin.set(ylabel="unrolled steps (dashed)", ylim=(0, None))
  for axis in axes[0]:
    axis.grid(alpha=0.3)
  axes[0, 0].legend(frameon=False, fontsize=8)
  figure.suptitle(f"{result['trains']} {result['rule']}: a meta-training".replace("  ", " "), fontsize=10)
  return {"training": figure}
