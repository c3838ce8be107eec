"""What README.md tells: its table of results, written by hand."""

from cljax.report.pages import read_published
from tests.pages.cotraining import SCALE, SHOWN, at_scale, paper
from tests.pages.subnetwork import DETECTED, LONG
from tests.prose import ROOT, inferred, mean, result, row, written

LEFT_OUT = ("Python 3.11", "Apache-2.0")

SETS, LASEM, RULE = "expert_gate/paper/datasets", "lasem/long/cifar100_10", "metateacher/reduced/mnist"
PUBLISHED = read_published("cotraining", ROOT / "configs")["values"]


def number(value):
  return written("{:.3f}", value)


def rows():
  """[(cells of a row, accuracy of the paper's method, of the best control)]."""
  for stream, called in SHOWN.items():
    plain, replay, own = (mean(paper(stream, method)) for method in ("finetune", "er", "routing_cotrain"))
    tuned = max(mean(at_scale(stream, "er", rate)) for rate in SCALE["er"])
    told = f"{number(own)} (published {number(PUBLISHED[stream]['routing_cotrain']['ACC'])})"
    control = f"replay alone {number(replay)}, at its best rate {number(tuned)}"
    yield ("Routing with co-training", f"{called}, 20 tasks", number(plain), told, control), own, tuned
  own, oracle, held = (inferred(f"{SETS}/{method}")[0] for method in ("expert_gate", "discriminative", "experts_lwf"))
  plain = f"{number(mean(f'{SETS}/finetune'))} (task told)"
  control = f"a classifier that saw all tasks' rows {number(oracle)}; every expert by LwF {number(held)}"
  yield ("Expert Gate", "four data sets, task not told", plain, number(own), control), own, held
  names = ("finetune", "er", "subnetwork", DETECTED, "one_expert", "each_own")
  plain, replay, own, hidden, one, each = (mean(f"{LONG}/{name}") for name in names)
  where, told = "20 pairs of classes, boundaries told; hidden", f"{number(own)}; {number(hidden)}"
  control = f"replay alone {number(replay)}; one expert for all {number(one)}, one for each {number(each)}"
  yield ("Subnetworks", where, number(plain), told, control), own, each
  shared, own, apart, drawn = (mean(f"{LASEM}/hps_{m}") for m in ("all", "amortised", "single", "random"))
  where = f"CIFAR-100, 10 tasks of {result(f'{LASEM}/hps_all')['train_rows'][0][0]} pictures"
  control = f"a network for each task {number(apart)}; layers at random {number(drawn)}"
  yield ("LASEM", where, f"{number(shared)} (all layers shared)", number(own), control), own, apart
  plain, own, slow, lwf = (mean(f"{RULE}/{m}") for m in ("sgd", "lstm", "sgd_0.1", "lwf_0.5"))
  control = f"LwF {number(lwf)}; SGD at a lower rate {number(slow)}"
  yield ("Learned rule", "MNIST, 0 to 4, then 5 to 9", number(plain), number(own), control), own, lwf


def phrases():
  for cells, own, control in rows():
    yield row(*cells)
    assert control > own
  yield "In every row some control is level with the paper's method or ahead of it"
