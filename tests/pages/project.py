"""What README.md tells: its table of results, written by hand."""

from cljax.report.pages import read_published
from tests.pages.cotraining import SHOWN, paper
from tests.pages.subnetwork import DETECTED, LONG
from tests.prose import ROOT, inferred, mean, result, row, written

LEFT_OUT = ("Python 3.11", "Apache-2.0")

SETS, LASEM, RULE = "expert_gate/paper/datasets", "lasem/long/cifar100_10", "metateacher/reduced/mnist"
PUBLISHED = read_published("cotraining", ROOT / "configs")["values"]
ORACLE, APART = "a classifier that saw all tasks' rows", "a network for each task"


def number(value):
  return written("{:.3f}", value)


def phrases():
  for stream, called in SHOWN.items():
    plain, replay, own = (number(mean(paper(stream, method))) for method in ("finetune", "er", "routing_cotrain"))
    told = f"{own} (published {number(PUBLISHED[stream]['routing_cotrain']['ACC'])})"
    yield row("Routing with co-training", f"{called}, 20 tasks", plain, told, f"replay alone {replay}")
  own, oracle = (number(inferred(f"{SETS}/{method}")[0]) for method in ("expert_gate", "discriminative"))
  plain = f"{number(mean(f'{SETS}/finetune'))} (task told)"
  yield row("Expert Gate", "four data sets, task not told", plain, own, f"{ORACLE} {oracle}")
  plain, replay, given, hidden = (number(mean(f"{LONG}/{m}")) for m in ("finetune", "er", "subnetwork", DETECTED))
  where = "20 pairs of classes, boundaries told; hidden"
  yield row("Subnetworks", where, plain, f"{given}; {hidden}", f"replay alone {replay}")
  plain, own, apart, drawn = (number(mean(f"{LASEM}/hps_{m}")) for m in ("all", "amortised", "single", "random"))
  best = f"{APART} {apart}; layers at random {drawn}"
  yield row(
    "LASEM",
    f"CIFAR-100, 10 tasks of {result(f'{LASEM}/hps_all')['train_rows'][0][0]} pictures",
    f"{plain} (all layers shared)",
    own,
    best,
  )
  plain, own, slow, lwf = (number(mean(f"{RULE}/{m}")) for m in ("sgd", "lstm", "sgd_0.1", "lwf_0.5"))
  yield row("Learned rule", "MNIST, 0 to 4, then 5 to 9", plain, own, f"LwF {lwf}; SGD at a lower rate {slow}")
  yield "In the last two rows a control is ahead."
  assert mean(f"{LASEM}/hps_single") > mean(f"{LASEM}/hps_amortised") and mean(f"{RULE}/lwf_0.5") > mean(f"{RULE}/lstm")
