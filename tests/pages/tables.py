"""What docs/results.md tells outside of its tables."""

from tests.pages.cotraining import SHOWN, at_scale
from tests.pages.subnetwork import DETECTED, PAIRS, found
from tests.prose import inferred, mean, result

LEFT_OUT = ("lr .1",)


def phrases():
  slow = [at_scale(stream, "er", "0.03") for stream in SHOWN]
  yield "the shared bottom with replay reaches {:.3f} and {:.3f} (lr .03, three seeds)", *map(mean, slow)
  gate = "expert_gate/paper/datasets/expert_gate"
  assert 0.05 < 100 * (mean(gate) - inferred(gate)[0]) < 0.15
  yield "and loses a tenth of a point to an oracle"
  there, of, false, delays = found(f"{PAIRS}/{DETECTED}")
  assert there == of and not false and max(delays) == 2 and mean(f"{PAIRS}/subnetwork", "forgetting") == 0
  yield "all onsets on the pairs are noticed within two batches and none is false"
  run = result("cotraining/gem1000/mnist_perm/er")
  tasks, batch, rows = run["config"]["stream"]["tasks"], run["config"]["method"]["batch_size"], run["timing"]["steps"]
  yield "In {:.0f} steps a task", rows / tasks
  assert batch == 10
