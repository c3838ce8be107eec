"""What configs/papers/expert_gate/README.md tells."""

import numpy as np

from cljax.pieces.experts import FINETUNE, LWF
from tests.prose import arrays, inferred, last, mean, named, result, runs, word

LEFT_OUT = (
  "arXiv 1611.06194",
  "threshold of .85",  # settings
  "the literature reports .43",  # published
  "of eight from 1 to 1e7 by",
)

SETS = "expert_gate/paper/datasets"
COPIES = "expert_gate/paper/copies"
SPLIT = "expert_gate/paper/split_mnist"
CONTROL = "expert_gate/control"
TRAINED = np.array([60_000, 60_000, 7_291, 50_000])  # training rows of MNIST, Fashion-MNIST, USPS and CIFAR-10


def phrases():
  yield from gate_of_sets()
  yield from gate_of_copies()
  yield from seeds()
  gate, classifier = inferred(f"{SPLIT}/expert_gate"), inferred(f"{SPLIT}/discriminative")
  yield (
    "the gate finds the task of {:.3f} of the rows and the classifier that saw all tasks of {:.3f}",
    gate[1],
    classifier[1],
  )
  yield "End to end {:.3f}, the oracle gate {:.3f}", gate[0], mean(f"{SPLIT}/expert_gate")
  yield (
    "one network trained by LwF keeps {:.3f} and a fine-tuned one {:.3f}",
    *(mean(f"{SPLIT}/{method}") for method in ("lwf", "finetune")),
  )


def seeds():
  told = {"Relatedness (means over {} seeds)": f"{COPIES}/expert_gate", "throughout ({} seeds": f"{COPIES}/experts_lwf"}
  told |= {"({} seeds, `results/expert_gate/control`)": f"{CONTROL}/border", "the hard case ({} seeds)": f"{SPLIT}/lwf"}
  for template, place in told.items():
    yield template, word(len(result(place)["seeds"]))


def gate_of_sets():
  gate, classifier, confident = (f"{SETS}/{method}" for method in ("expert_gate", "discriminative", "confident"))
  yield "The autoencoder gate finds the task of {:.3f} of the test rows (mean over tasks)", inferred(gate)[1]
  epochs, own = arrays(classifier)["gate_epochs"][:, -1], arrays(gate)["autoencoder_epochs"][:, -1]
  assert round((epochs @ TRAINED.cumsum() / (own @ TRAINED)).mean(), 1) == 1
  yield (
    "trained to its validation plateau ({} to {} epochs a task, in all as many steps as the gates take to theirs; "
    "train accuracy {:.3f}), of {:.3f}",
    *(epochs.min(), epochs.max(), float(arrays(classifier)["gate_train_accuracy"][:, -1, -1].mean())),
    inferred(classifier)[1],
  )
  wrong_rows = np.array(result(gate)["task_confusion"]).sum(axis=0) * (1 - np.eye(4, dtype=int))
  assert wrong_rows[[1, 3]][:, [0, 2]].sum() > wrong_rows.sum() / 2
  yield (
    "End to end {:.3f}, the same experts with the oracle gate {:.3f}, joint training {:.3f}, one network trained by "
    "LwF {:.3f} and fine-tuned {:.3f}",
    *(inferred(gate)[0], *(mean(f"{SETS}/{method}") for method in ("expert_gate", "joint", "lwf", "finetune"))),
  )
  found = np.array(result(confident)["task_confusion"], float).sum(axis=0)
  yield (
    f"is the right one for {named(inferred(confident)[1])} of the rows ({{:.3f}}), and for {{:.1%}} of the pictures "
    f"of CIFAR-10",
    *(inferred(confident)[1], float(found[3, 3] / found[3].sum())),
  )
  related = arrays(gate)["relatedness"][:, -1, 1:, :4].astype(float)
  assert (arrays(gate)["mode"][:, -1, 1:] == FINETUNE).all()
  assert np.array_equal(last(f"{SETS}/experts_finetune"), last(gate)[:2])
  yield "(relatedness {:.1f} and below)", float(np.nanmax(related))
  slots = 4 + 1  # of four tasks, and the one in training
  sizes = [4 * result(place)["parameters"] / slots / 1e6 for place in (gate, confident)]
  yield "(four autoencoders) is {:.1f} MB and an expert {:.1f} MB", 4 * (sizes[0] - sizes[1]), sizes[1]
  seen = [np.array(result(f"{CONTROL}/{name}")["task_confusion"], float) for name in ("border_resize", "border")]
  lost = [one.sum(axis=0) / one.sum(axis=(0, 2))[:, None] for one in seen]
  yield (
    f"finds the task of {{:.3f}} of the rows where pictures are resized ({named(lost[0][2, 1])} of USPS goes to "
    "Fashion-MNIST), and of {:.3f} where smaller ones are padded (the borders of MNIST and USPS are both black then, "
    "and {:.0%} of MNIST goes to USPS); the full gate of {:.3f} and {:.3f}",
    *(inferred(f"{CONTROL}/{name}")[1] for name in ("border_resize", "border")),
    *(float(lost[1][0, 2]), inferred(gate)[1], inferred(f"{CONTROL}/pad")[1]),
  )


def gate_of_copies():
  """The tasks: upright, relabelled, turned by 9 to 45 degrees, Fashion-MNIST."""
  place = f"{COPIES}/expert_gate"
  related, parent = arrays(place)["relatedness"][:, -1, :, :8].mean(axis=0, dtype=float), arrays(place)["parent"][:, -1]
  before = [float(related[task, task - 1]) for task in (3, 4, 5, 6)]
  assert (parent[:, 3:7] == [2, 3, 4, 5]).all() and (parent[:, 2] <= 1).all()
  assert (arrays(place)["mode"][:, -1, 1:] == [LWF, *[FINETUNE] * 6]).all()
  yield (
    "a relabelled copy with other rows {:.2f} to the first task; copies turned by 9, 18, 27, 36 and 45 degrees {:.2f}, "
    "{:.2f}, {:.2f}, {:.2f} and {:.2f} to it; from 18 degrees on {:.2f} to {:.2f} to their nearest neighbour, which is "
    "their parent (the 9-degree copy's nearest is an upright one, {:.2f}); Fashion-MNIST {:.1f} to {:.1f} to all",
    *related[1:7, 0].tolist(),
    *(min(before), max(before), float(related[2, 0]), float(related[7, :7].min()), float(related[7, :7].max())),
  )
  gains = 100 * (last(f"{COPIES}/experts_lwf") - last(f"{COPIES}/experts_finetune"))[:, 1:]
  yield (
    "the relabelled copy gains {:.2f} ± {:.2f} by LwF; the turned copies {:.2f} ± {:.2f}, {:.2f} ± {:.2f}, {:.2f} ± "
    "{:.2f}, {:.2f} ± {:.2f} and {:.2f} ± {:.2f}; Fashion-MNIST, from an unrelated parent, {:.2f} ± {:.2f}",
    *np.stack([gains.mean(axis=0), gains.std(axis=0, ddof=1)], axis=1).ravel().tolist(),
  )
  yield (
    "the copies come to {:.3f}, against {:.3f} by LwF and {:.3f} by fine-tuning",
    *(mean(f"{COPIES}/experts_{mode}") for mode in ("ewc", "lwf", "finetune")),
  )
  tried = {float(name.rpartition("=")[2]): name for name in runs("expert_gate/search/ewc_strength")}
  valid = {s: result(name)["readouts"]["valid"]["metrics"]["ACC"]["mean"] for s, name in tried.items()}
  assert max(valid, key=valid.get) == min(tried) == 1 and len(tried) == 8
  yield (
    "`results/expert_gate/search/ewc_strength`): {:.3f} there, {:.3f} at 1,000 and {:.3f} at the largest",
    *(mean(tried[strength]) for strength in (1, 1e3, 1e7)),
  )
  yield "The gate takes {:.2f} of the rows for their own copy", inferred(place)[1]
  yield (
    "most of those answers are right anyhow ({:.3f} against {:.3f} with the task given)",
    inferred(place)[0],
    mean(place),
  )
