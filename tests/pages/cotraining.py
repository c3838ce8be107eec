"""What configs/papers/cotraining/README.md tells."""

import numpy as np

from cljax.report.pages import read_published
from configs.papers.cotraining.table1 import STRENGTHS
from tests.prose import ROOT, arrays, bold, mean, named, result, row, runs, std, word, written

LEFT_OUT = (
  "| stream | method | .02 | .05 ... .757 without (scale 2, rate .2)",  # gem1000's search, whose results are not kept
  "arXiv 2009.04381",
  "| .01 | .02 | .03 | .05 | .1 | .2 | .3 | .5 |",  # settings, as the others
  "lr .1",
  "stays at .1",
  "its rate, .1 here",
  ".1 to 300 for EWC, .01 to 30 for SI; the mixture at its rate of .5",
)

BESIDE = (  # as the table of guards has it
  ("co-training under EWC", "cotrain_ewc", "routing_cotrain"),
  ("co-training under SI", "cotrain_si", "routing_cotrain"),
  ("co-training under A-GEM", "cotrain_agem", "routing_cotrain"),
  ("co-training under GEM", "cotrain_gem", "routing_cotrain"),
  ("plain training under EWC", "ewc", "finetune"),
  ("plain training under GEM", "gem", "finetune"),
)
SHOWN = {"mnist_perm": "MNIST-Perm", "mnist_rot": "MNIST-Rot"}
SEARCHED = {  # method: the rates at which it was run
  "finetune": ("0.01", "0.03", "0.1"),
  "er": ("0.02", "0.03", "0.05", "0.1", "0.2"),
  "routing": ("0.1", "0.2", "0.3"),
  "routing_cotrain": ("0.05", "0.1", "0.2", "0.3", "0.5"),
}
RATES = ("0.01", "0.02", "0.03", "0.05", "0.1", "0.2", "0.3", "0.5")
SCALE = {"er": ("0.03", "0.05", "0.1"), "routing_cotrain": ("0.1", "0.2", "0.3"), "routing_frozen": ("0.1",)}
KNOBS = {  # as the table has it: the runs
  "`cotrain_lr` .01, .03, .3": [
    f"cotrain_lr/mnist_rot/routing_cotrain/cotrain_lr={v}" for v in ("0.01", "0.03", "0.3")
  ],
  "`router_lr` 0, .01, 1": [f"router_lr/mnist_rot/routing_cotrain/router_lr={v}" for v in ("0", "0.01", "1")],
  "`gate_scale` 2, 4": [f"gate_scale/mnist_rot/routing_cotrain/gate_scale={v}" for v in ("2", "4")],
  "`new_rows` mean, ties": [f"new_rows_{v}/mnist_rot/routing_cotrain" for v in ("mean", "ties")],
  "`widths` (19, 31)": ["widths/mnist_rot/routing_cotrain"],
  "`exhausted` routed": ["exhausted/mnist_rot/routing_cotrain"],
}


def paper(stream, method):
  return f"cotraining/paper/{stream}/{method}"


def searched(stream, method, lr):
  return f"cotraining/search/rates/{stream}/{method}/lr={lr}"


def at_scale(stream, method, lr):
  of_table = lr == "0.1" and method != "routing_frozen"
  return paper(stream, method) if of_table else f"cotraining/search/scale/{stream}/{method}/lr={lr}"


def grid():
  """Over five tasks, with the best rate of each method in bold."""
  for stream, called in SHOWN.items():
    for method, own in SEARCHED.items():
      found = [mean(searched(stream, method, lr)) for lr in own]
      told = dict(zip(own, bold([written("{:.4f}", acc) for acc in found], int(np.argmax(found))), strict=True))
      yield row(called, method, *(told.get(lr, "") for lr in RATES))


def knobs():
  """Of co-training, over five tasks."""
  for knob, places in KNOBS.items():
    own = [f"cotraining/search/{place}" for place in places]
    numbers = [", ".join(written(form, mean(p, m)) for p in own) for m, form in (("ACC", "{:.4f}"), ("BWT", "{:.3f}"))]
    yield row(knob, *numbers)


def scale():
  """Over twenty tasks, with the best rate of each method in bold."""
  for stream in ("mnist_rot", "mnist_perm"):
    for method, own in SCALE.items():
      places = [at_scale(stream, method, lr) for lr in own]
      told = [written("{:.4f} ± {:.4f}", mean(place), std(place)) for place in places]
      told = bold(told, int(np.argmax([mean(place) for place in places]))) if len(own) > 1 else told
      for lr, place, acc in zip(own, places, told, strict=True):
        rest = written("{:.4f}", mean(place, "BWT")), written("{:.3f}", mean(place, "learning_accuracy"))
        yield row(SHOWN[stream], method, written("{:g}", float(lr)), acc, *rest)


def alike(stream, method):
  """Inner products of routing rows, means over seeds and layers: of neighbours, and of tasks ten or more apart."""
  routing = arrays(paper(stream, method))["routing"][:, -1].astype(float)  # [S, L, T, E]
  products = np.einsum("slte,slue->sltu", routing, routing)
  apart = np.abs(np.subtract.outer(*[np.arange(routing.shape[2])] * 2))
  return float(products[..., apart == 1].mean()), float(products[..., apart >= 10].mean())


def skipped(stream):
  """[T] share of the steps of co-training that were skipped."""
  place = paper(stream, "routing_cotrain")
  found = arrays(place)["skipped"][:, -1]
  return found.mean(axis=0) / (result(place)["timing"]["steps"] / found.shape[1])


def budget():
  """Runs of one seed, and what the knobs are compared with."""
  each = len(result(searched("mnist_perm", "er", "0.1"))["seeds"])
  counts = {method: each * len(SHOWN) * len(own) for method, own in SEARCHED.items()}
  assert counts["er"] == counts["routing_cotrain"] and counts["routing"] == counts["finetune"]
  base = searched("mnist_rot", "routing_cotrain", "0.1")
  others = each * sum(len(places) for places in KNOBS.values())
  return counts["er"], counts["routing"], others, mean(base), std(base), mean(base, "BWT")


def gained(stream, method, base):
  """(mean, deviation) of the points that a method adds to another, seed by seed, at `gem1000`."""
  own, other = (
    np.array(result(f"cotraining/gem1000/{stream}/{name}")["metrics"]["ACC"]["values"]) for name in (method, base)
  )
  points = 100 * (own - other[: len(own)])
  return float(points.mean()), float(points.std(ddof=1))


def guards():
  """Co-training under a guard beside co-training, plain training under one beside plain training."""
  for called, method, base in BESIDE:
    own = [written("{:.2f} ± {:.2f}", *gained(stream, method, base)) for stream in SHOWN]
    yield row(
      called, *(f"{STRENGTHS[stream][method]:g}" if method in STRENGTHS[stream] else "-" for stream in SHOWN), *own
    )
  yield "GEM on MNIST-Perm, which adds {:.1f} points", gained("mnist_perm", "cotrain_gem", "routing_cotrain")[0]
  yield "and GEM {:.0f}", gained("mnist_rot", "gem", "finetune")[0]
  alone = [mean(f"cotraining/gem1000/{stream}/gem") for stream in SHOWN]
  yield "GEM alone ({:.3f} and {:.3f}) is ahead of co-training", *alone
  for stream, acc in zip(SHOWN, alone, strict=True):
    own = {method: mean(f"cotraining/gem1000/{stream}/{method}") for method in ("routing_cotrain", "cotrain_gem", "er")}
    assert own["routing_cotrain"] < acc < own["er"] and own["cotrain_gem"] < acc
  yield "ahead of all rows of that table, {:.3f} and {:.3f}", *(mean(f"cotraining/gem1000/{s}/mer") for s in SHOWN)
  assert all(mean(place) <= mean(place.rsplit("/", 1)[0] + "/mer") for place in runs("cotraining/gem1000"))
  assert all(len(result(f"cotraining/gem1000/mnist_perm/{method}")["seeds"]) == 5 for _, method, _ in BESIDE)


def phrases():
  yield from guards()
  perm, rot = ({method: paper(stream, method) for method in SEARCHED} for stream in SHOWN)
  yield "19 in both layers: {:,} parameters", result(perm["routing"])["parameters"]
  yield from rows_of_the_search()
  run = result(perm["er"])
  yield (
    "`paper` ({} tasks of 60,000 examples, one pass) has run with all {} seeds",
    *map(len, (run["accuracy"][0][0], run["seeds"])),
  )
  yield "within the {:,} of the shared bottom", result(perm["er"])["parameters"]
  yield from grid()
  yield (
    "Budget, in runs of one seed: {} for er and for co-training, {} for routing and for finetune, and {} for "
    "co-training's other knobs, on MNIST-Rot at lr .1, where ACC is {:.4f} ± {:.4f} and BWT {:.3f} without them",
    *budget(),
  )
  yield from knobs()
  base, frozen = (
    searched("mnist_rot", "routing_cotrain", "0.1"),
    "cotraining/search/" + KNOBS["`router_lr` 0, .01, 1"][0],
  )
  yield "the learned router (.1) is {:.1f} points above the frozen random one", 100 * (mean(base) - mean(frozen))
  yield (
    "the mean of earlier rows learns a task best ({:.3f} right after it)",
    mean("cotraining/search/new_rows_mean/mnist_rot/routing_cotrain", "learning_accuracy"),
  )
  yield from scale()
  yield from at_twenty_tasks(perm, rot)


def at_twenty_tasks(perm, rot):
  both, co, er, alone = (perm, rot), "routing_cotrain", "er", "routing"
  random = [at_scale(stream, "routing_frozen", "0.1") for stream in SHOWN]
  slow = [at_scale(stream, "er", "0.03") for stream in SHOWN]
  gap = 100 * (mean(rot[co]) - mean(random[1]))
  kept = mean(rot[co], "BWT") / mean(random[1], "BWT")
  yield (
    "the learned router is worth {:.0f} points on MNIST-Rot ({:.3f} against {:.3f}, with {:.0%} of the forgetting), "
    "and nothing on MNIST-Perm ({:.3f} against {:.3f})",
    *(gap, mean(rot[co]), mean(random[1]), kept, mean(perm[co]), mean(random[0])),
  )
  yield f"a learned router beats the same at random by {word(gap)} points there"
  less = [named(mean(one[co], "BWT") / mean(one[er], "BWT")) for one in both]
  yield (
    "ACC {:.3f} against {:.3f} (MNIST-Perm) and {:.3f} against {:.3f} (MNIST-Rot), and {} and {} of the forgetting",
    *(mean(one[method]) for one in both for method in (co, er)),
    *less,
  )
  yield (
    "the shared bottom gains from a smaller rate ({:.4f} on MNIST-Perm and {:.4f} on MNIST-Rot at lr .03, against "
    "{:.4f} and {:.4f} of co-training at .1)",
    *map(mean, slow),
    *(mean(one[co]) for one in both),
  )
  less = [named(mean(one[co], "BWT") / mean(other, "BWT")) for one, other in zip(both, slow, strict=True)]
  yield "What remains is that it forgets less, {} as much on MNIST-Perm and {} on MNIST-Rot", *less
  yield (
    "Yes on MNIST-Rot, {:.3f} against {:.3f} and BWT {:.3f} against {:.3f}. On MNIST-Perm it changes nothing "
    "({:.4f} and {:.4f})",
    *(mean(rot[method], metric) for metric in ("ACC", "BWT") for method in (co, alone)),
    *(mean(perm[method]) for method in (co, alone)),
  )
  rests, later = skipped("mnist_perm"), skipped("mnist_rot")
  assert rests[10:].min() == 1 and rests[9] < 1
  yield (
    "({:.0%} in task 10, all from task 11 on; on MNIST-Rot {} of them in task 12, {:.0%} in task 16)",
    *(
      float(rests[9]),
      named(later[11]),
      float(later[15]),
    ),
  )
  yield (
    "Yes: {:.3f} against {:.3f} and {:.3f} against {:.3f} right after a task",
    *(mean(one[method], "learning_accuracy") for one in both for method in (co, er)),
  )
  (near, far), (near_alone, far_alone) = (alike("mnist_rot", method) for method in (co, alone))
  assert written("{:.2f}", far) == written("{:.2f}", far_alone)
  yield (
    "have an inner product of {:.2f}, without co-training of {:.2f}; rows of tasks 90 degrees or more apart {:.2f} "
    "either way",
    *(near, near_alone, far),
  )
  pairs = [*alike("mnist_perm", co), *alike("mnist_perm", alone)]
  yield "On MNIST-Perm all pairs are alike ({:.2f} to {:.2f})", min(pairs), max(pairs)
  told = read_published("cotraining", ROOT / "configs")["values"]
  yield "(MNIST-Rot {:.3f} against {:.3f})", mean(rot["finetune"]), told["mnist_rot"]["finetune"]["ACC"]
  yield "is short on MNIST-Rot ({:.3f} against {:.3f})", mean(rot[alone]), told["mnist_rot"][alone]["ACC"]
  assert mean(slow[0]) > mean(perm[er]) > told["mnist_perm"][er]["ACC"]
  assert mean(slow[1]) > told["mnist_rot"][er]["ACC"] > mean(rot[er])
  yield "lies between those of lr .03 and .1 on MNIST-Rot and below both on MNIST-Perm"


def rows_of_the_search():
  """Which rows judged: of all runs the same, and of all seeds that are in no table."""
  configs = [result(place)["config"] for place in runs("cotraining/search")]
  assert {(config["stream"]["valid_per_task"], config["seed"]) for config in configs} == {(0, 100)}
  yield "ACC over the held-out seeds 100 to 102, judged by test rows (no validation rows are set aside)"
  yield "ACC after the first five tasks over the held-out seeds 100 to 102, judged by test rows"
  yield "over the seeds 100 to 102, by test rows"


def told():
  """All runs of the search."""
  found = {searched(stream, method, lr) for stream in SHOWN for method, own in SEARCHED.items() for lr in own}
  found |= {f"cotraining/search/{place}" for places in KNOBS.values() for place in places}
  return found | {at_scale(stream, method, lr) for stream in SHOWN for method, own in SCALE.items() for lr in own}
