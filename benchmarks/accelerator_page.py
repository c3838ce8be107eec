"""The results of an accelerator as text: the table that a command prints, and the page benchmarks/ACCELERATOR.md."""

from collections.abc import Sequence

import jax

from benchmarks.accelerator import NET, SETTINGS, SHARE, Budget, Found, Line
from benchmarks.rows import median, present
from benchmarks.table import accuracies, facts, markdown

HEAD = ("quantity", "cljax", "other", "ratio", "spread", "check")
ON_CPU = "a CPU: what follows says nothing about an accelerator"
ABOUT = """# On an accelerator

Written by `python -m launch.bench --suite=accelerator --write` on one device; do not edit.

Microseconds of wall time a step: the median over rounds in which every subject had its turn, least and largest in
brackets. A ratio is made within each round: other / cljax against PyTorch, against steps one by one and against a full
scan (above 1 the first is faster), and cljax / other where several seeds stand against one.

A step has {settings}. The shared bottom and the mixture of experts are those of README.md; the convolution net has
{net}. cljax is called as a run calls it, a whole task with its plan, warps, live mask and metrics; loop and scan come
without what happens on the host. PyTorch gets rows that are warped already, on the same device, and in its turns takes
one step in {share}. Before anything was timed, every subject learnt the same two tasks from the same initial weights,
and both sides of a row learnt alike.

"""


def cells(line: Line) -> tuple[str, ...]:
  """The texts of a row."""
  ratio = line.ratio
  spread = f"{ratio.low:.2f}..{ratio.high:.2f}"
  return (line.text, shown(line.ours), shown(line.other), f"{ratio.median:.2f}", spread, line.trouble or "alike")


def shown(times: Sequence[float]) -> str:
  """The median, least and largest in brackets."""
  return f"{median(times):.1f} ({min(times):.1f}..{max(times):.1f})"


def table(found: Found) -> str:
  """All rows as markdown."""
  return markdown(HEAD, [cells(line) for line in found.lines])


def device() -> list[tuple[str, str]]:
  """What JAX and PyTorch ran on."""
  first = jax.devices()[0]
  version = (str(getattr(first.client, "platform_version", "")).splitlines() or [""])[0]
  where = ON_CPU if first.platform == "cpu" else f"{first.device_kind} ({first.platform})"
  found = [("device", where), ("platform version", version), ("devices", str(jax.device_count()))]
  if present("torch"):
    import torch

    cards = torch.cuda.is_available() and first.platform != "cpu"
    found.append(("PyTorch on", torch.cuda.get_device_name() if cards else "a CPU"))
  return found


def page(found: Found, steps: int, rounds: int, budget: Budget) -> str:
  """benchmarks/ACCELERATOR.md whole."""
  took = [("seconds of the whole run, its budget", f"{budget.spent():.0f}, {budget.seconds:.0f}")]
  known = markdown(("", ""), [*device(), *facts(steps, rounds), *took])
  left_out = "".join(f"Left out: {name}, {why}.\n" for name, why in found.left_out.items())
  text = ABOUT.format(settings=SETTINGS, net=NET, share=SHARE) + table(found) + "\n"
  return f"{text}{left_out}\n{known}\n{accuracies(found.accuracy)}"
