"""What a comparison with Avalanche found, as text: the table that a command prints, and benchmarks/PARITY.md."""

import textwrap
from collections.abc import Sequence

from benchmarks import problem
from benchmarks.avalanche_changes import has_solver
from benchmarks.parity_cases import ALIKE, APART, CLOSE, METHODS, Found
from benchmarks.parity_sides import Size
from benchmarks.table import machine, markdown

NEEDED = {"torch": "PyTorch", "avalanche": "Avalanche"}  # module -> how it is told
HEAD = ("method", "set up", "cljax", "Avalanche", "difference", "weights apart", "by the method", "agrees")
ABOUT = """# Parity with Avalanche

Written by `python -m benchmarks.parity --write`; do not edit.

Do methods of one name learn the same? Both sides learn {tasks} tasks of {rows} rows, once, in batches of {batch}:
the 8 x 8 digits that come with the library, each task with its own order of the pixels, by plain SGD of rate {lr:g},
with one head on two layers of {hidden}. Each of {seeds} seeds has its own initial weights, permutations and orders, the
same on both sides: Avalanche is given the rows in the order of cljax's plan, and does not shuffle.

`cljax` and `Avalanche` are accuracies at the end, mean over tasks and seeds, with the standard deviation over seeds.
`weights apart` is the largest difference of any weight after the second task, the first in which a method has something
to hold, of any seed; beside it `by the method`: how far the method takes cljax's weights from those of fine-tuning.
A method stands as Avalanche comes, with strengths by their definitions' factors, and once more with what makes both
sides the same algorithm, where that takes something. The same algorithm agrees where weights differ by at most
{apart:g} and accuracies by {alike:g}; two algorithms of one name where accuracies differ by at most {close:g}.

"""
NOTES = {  # where Avalanche differs from the papers, and what makes both sides alike
  "finetune": """
Fine-tuning is Avalanche's `Naive`. That it agrees says that rows, order, initial weights and steps are the same.
""",
  "ewc": """
EWC: the paper's penalty has one half, Avalanche's has not, so `ewc_lambda` is half of our strength. The paper's Fisher
is a mean of squares of gradients of single rows; Avalanche squares the mean gradient of each batch of training, which
is smaller by up to the rows of a batch. Both take the labels of the data. Made alike: Avalanche takes its Fisher over
batches of one row.
""",
  "si": """
SI: Avalanche has half of `si_lambda` before the sum, the paper no half, so it is twice our strength. On a CPU the
weights that Avalanche's plugin remembers are views of those in training (`.detach().cpu().flatten()` copies nothing
there): every movement is 0, every importance is 0, and it is fine-tuning. With weights copied it works; each importance
is then at most 0.001, where the paper has no bound; and the integral takes the gradient of loss and penalty together,
where the paper has the loss's own. Made alike: weights are copied, and nothing bounds the importances. The gradient of
the penalty stays in the integral, which moves weights from the third task on.
""",
  "lwf": """
LwF: Avalanche takes the divergence where the paper has the cross-entropy, which has the same gradient; weight and
temperature are defined alike. It does not warm up new heads, so ours does not here; with one head there is none to warm
up. Its teacher is a copy in the mode of training: with dropout, which this net has not, its answers would be random.
Nothing has to be made alike. In some earlier versions its term was zero; in this one it is not.
""",
  "agem": """
A-GEM: the paper draws each step's rows from the whole memory at random. Avalanche takes an equal share of each earlier
task, rounded down, and goes through what it keeps in one order again and again. Both sides keep rows of their own
choice of each task. Made alike: every row of each task is kept, and asked in each step.
""",
  "gem": """
GEM: the paper adds the margin to the dual solution; Avalanche, as the authors' program, takes it as the least value of
the solution, which is our `margin_as=bound`, and adds 0.001 to the diagonal of the program. The paper keeps the last
rows of a task, both sides some at random. Made alike: every row is kept, ours takes the margin as a bound, and nothing
is added to the diagonal.
""",
}
ALONE = """
The program of GEM was solved by an exact solver of the benchmark (`least` in avalanche_changes.py): Avalanche asks
qpsolvers for quadprog, one of its requirements, which is not installed here.
"""
ITS_OWN = """
The program of GEM as it comes was solved by quadprog, made alike by an exact solver of the benchmark.
"""


def cells(found: Found) -> tuple[str, ...]:
  """The texts of a line."""
  sides = [f"{side.mean():.3f} ± {side.std():.3f}" for side in (found.ours, found.theirs)]
  moved = f"{found.moved:.1e}" if found.moved else "-"
  verdict = "yes" if found.agrees() else "no"
  case = found.case
  return (case.text, case.setup, *sides, f"{found.difference():+.3f}", f"{found.apart:.1e}", moved, verdict)


def table(found: Sequence[Found]) -> str:
  """All lines as markdown."""
  return markdown(HEAD, [cells(one) for one in found])


def notes(names: Sequence[str]) -> str:
  """Where Avalanche differs from the papers, by method, and what solved GEM's program."""
  told = [NOTES[name] for name in names] + ([ITS_OWN if has_solver() else ALONE] if "gem" in names else [])
  fill = textwrap.TextWrapper(120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
  return "\n".join(fill.fill(" ".join(text.split())) for text in told)


def page(found: Sequence[Found], size: Size) -> str:
  """benchmarks/PARITY.md whole."""
  about = ABOUT.format(
    tasks=size.tasks,
    rows=size.rows,
    seeds=size.seeds,
    batch=problem.BATCH,
    lr=problem.LR,
    hidden=problem.HIDDEN,
    apart=APART,
    alike=ALIKE,
    close=CLOSE,
  )
  where = "## Where Avalanche differs from the papers\n\nRead off the source of the version below.\n"
  return f"{about}{table(found)}\n{where}\n{notes(METHODS)}\n\n{markdown(('', ''), machine())}"
