"""What configs/papers/baselines/README.md tells."""

import csv
import re

from cljax.report.pairs import NONE, TOLD, behind_gates, under_guards
from configs.papers.baselines.pairs import GATED, GUARDED, STREAMS
from configs.papers.baselines.table1 import TUNED
from launch.presets import published_of
from tests.prose import RESULTS, result, row, runs, written

LEFT_OUT = ("| MNIST permuted | online / EWC...pictures a task is .891 there",)  # published
SEARCH, PAPER, PAIRS = "baselines/search", "baselines/paper", "baselines/pairs"
VALID, TEST = "ACC, validation rows", "ACC (last)"


def searches():
  """[(cell of a stream, method, rows of its search's report.csv)]."""
  for path in sorted((RESULTS / SEARCH).glob("*/*.csv")):
    with path.open(newline="") as file:
      yield path.parent.name, path.stem, list(csv.DictReader(file))


def best(tried):
  """The winner by validation rows."""
  return max(tried, key=lambda one: float(one[VALID] or "-inf"))


def settings(one):
  """{name: number} of a row, as its label tells them, and its rate."""
  told = re.findall(r"(\w+)=([^,]+)", re.search(r"\((.*?)\)", one["method"])[1])
  return {name: float(value) for name, value in told} | ({"lr": float(one["lr"])} if one.get("lr") else {})


def line_of(cell, method, tried):
  """A line of the table of searches."""
  one = best(tried)
  numbers = ", ".join(f"{name} {value:g}" for name, value in settings(one).items())
  spread = f" ± {float(one[TEST + ', s.d.']):.4f}" if one.get(TEST + ", s.d.") else ""
  acc = written("{:.4f}", float(one[TEST])) + re.sub(r"0\.", ".", spread)
  return row(f"`{cell}`", method, f"{len(tried)} x {one['seeds']}", numbers, acc)


def matrix(stream, kind):
  """(names of the columns, {method: [accuracies]}) of a heat map, as its figure has them."""
  cells = kind([result(place) for place in runs(PAIRS) if f"/{stream}/" in place])
  first = NONE if kind is under_guards else TOLD
  others = [first, *sorted({other for _, other in cells} - {first})]
  methods = GUARDED if kind is under_guards else GATED
  return others, {method: [cells[method, other] for other in others] for method in methods}


def matrices():
  for stream in STREAMS:
    for kind in (under_guards, behind_gates):
      others, found = matrix(stream, kind)
      yield row(f"`{stream}`", *others)
      for method, values in found.items():
        yield row(f"`{method}`", *(written("{:.3f}", value) for value in values))


def what_they_show():
  guards, gates = ({stream: matrix(stream, kind) for stream in STREAMS} for kind in (under_guards, behind_gates))
  others, found = guards["digits_permuted"]
  gem, ewc = others.index("gem"), others.index("ewc")
  gained = {method: [100 * (value - values[0]) for value in values] for method, values in found.items()}
  yield (
    "On permuted digits GEM adds {:.1f} points to fine-tuning, {:.1f} to routing, {:.1f} to ER and {:.1f} to DER++",
    *(gained[method][gem] for method in ("finetune", "routing", "er", "derpp")),
  )
  yield (
    "EWC adds {:.1f} to fine-tuning, {:.1f} to routing and nothing to ER",
    gained["finetune"][ewc],
    gained["routing"][ewc],
  )
  assert abs(gained["er"][ewc]) < 0.1 and max(gained["single"]) == 0
  lost = {
    (stream, other): [100 * (values[0] - values[columns.index(other)]) for values in by_method.values()]
    for stream, (columns, by_method) in gates.items()
    for other in columns[1:]
  }
  assert max(lost["digits_permuted", "autoencoder"] + lost["digits_permuted", "means"]) == 0
  yield (
    "on split digits the autoencoder loses {:.1f} to {:.1f} points, the mean picture {:.1f} to {:.1f}",
    *(end(lost["digits_split", gate]) for gate in ("autoencoder", "means") for end in (min, max)),
  )
  entropy = [loss for stream in STREAMS for loss in lost[stream, "entropy"]]
  yield "The entropy of single answers loses {:.0f} to {:.0f} points", min(entropy), max(entropy)


def one_row():
  """ER and plain training where a step takes one row."""
  found = {}
  for method in ("er", "finetune"):
    with (RESULTS / "baselines/one_row" / f"{method}.csv").open(newline="") as file:
      found[method] = float(best(list(csv.DictReader(file)))[TEST])
  yield "ER reaches {:.3f} at the best of three rates and plain training {:.3f}", found["er"], found["finetune"]


def rivals():
  """LwF in the class scenario: by the weight of van de Ven and Tolias, and by the searched one."""
  old, seen, best = (
    result(place)["metrics"]["ACC"]["mean"]
    for place in ("baselines/rivals/old", "baselines/rivals/seen", f"{PAPER}/mnist_split_class/lwf")
  )
  yield "without the rivals it keeps nothing in the class scenario ({:.3f})", old
  yield "better than published, {:.3f} with a searched weight", best
  yield "it holds on to the first task and learns no other ({:.3f})", seen


def short():
  """Ours and the published numbers that are above them."""
  told = published_of("baselines")["values"]["mnist_split_domain"]
  pairs = [(result(f"{PAPER}/mnist_split_domain/{name}"), told[name]["ACC"]) for name in ("finetune", "online_ewc")]
  (plain, theirs), (online, also) = [(ours["metrics"]["ACC"]["mean"], acc) for ours, acc in pairs]
  yield "below the published number, {:.3f} for {:.3f}, and we know no reason", plain, theirs
  yield "online EWC is as far below, {:.3f} for {:.3f}", online, also
  hundred = result(f"{PAPER}/cifar100_split/finetune")["metrics"]["ACC"]["mean"]
  theirs = published_of("baselines")["values"]["cifar100_split"]["finetune"]["ACC"]
  yield "Plain training on split CIFAR-100 has {:.3f} for {:.3f}", hundred, theirs


def phrases():
  yield from one_row()
  yield from short()
  yield from rivals()
  yield from matrices()
  yield from what_they_show()
  for cell, method, tried in searches():
    yield line_of(cell, method, tried)
    rate, number = TUNED[cell][method]
    own = settings(best(tried))
    assert own.get("lr", rate) == rate and (number is None or number in own.values()), (cell, method, own)
  (searched,) = (best(tried) for cell, method, tried in searches() if (cell, method) == ("mnist_split_domain", "si"))
  yield (
    "SI without the task told had {:.3f} on the one seed of its search and has {:.3f} on the five",
    *(float(searched[TEST]), result(f"{PAPER}/mnist_split_domain/si")["metrics"]["ACC"]["mean"]),
  )
  ends = [settings(one)["lr"] in (0.01, 0.1) for one in (best(tried) for *_, tried in searches()) if one.get("lr")]
  yield "{} of the {} on permuted and rotated MNIST of 20 tasks", sum(ends), len(ends)
  assert runs(PAPER)
