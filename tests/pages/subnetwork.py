"""What configs/papers/subnetwork/README.md tells."""

import numpy as np

from cljax.methods.subnetwork.exhibits import hidden_frozen, onsets_of
from tests.prose import arrays, asked, inferred, last, mean, named, result, row, runs, word, written

LEFT_OUT = (
  "the paper's figure has 9.3 and 8.1",  # published, as what is read off
  "(published, read off: .80, .97, .65, .96, .97, .97)",
  "| layer 1, published | 2.55 | 2.2 | 5.9 | 7.3 | 8.3 | 9.3 |",
  "| layer 2, published | 4.0 | 6.5 | 6.9 | 7.8 | 8.0 | 8.1 |",
  "| output, published | 10 | 19.5 | 26.7 | 34.8 | 38.5 | 39.2 |",
  "(chance is .05)",
  "the subnetworks' rate of .001",  # settings, as the next
  "| method | .0003 | .001 | .003 |",
  "chance is .17",
  "30, 15, 4 and 10 % of the layers",  # settings
  "the scores on them .8 MB",  # sizes and memory
  "1.8 GB (pairs, given), 2.7 GB (pairs, detected)",
  "83 % of 240 pictures...| 19.4 | 34.7 |",  # Table 1 of the paper, which no run keeps
)


def at(place):
  return f"subnetwork/{place}"


MASKED = {  # as the table has them
  "HAT": "hat",
  "PackNet": "packnet",
  "WSN": "wsn",
  "SupSup": "supsup",
  "SPG": "spg",
  "CAT": "cat",
  "subnetworks, boundaries given": "subnetwork",
}
PAIRS, LONG, FASHION = (at(f"robust/{stream}") for stream in ("pairs", "long", "fashion"))
DETECTED = "subnetwork_detected"


def found(place):
  """(onsets found, onsets there were, false ones, delays) over all seeds."""
  seeds = onsets_of(result(place))
  delays = [delay for seed in seeds for delay in seed.delay]
  return len(delays), len(delays) + sum(one.missed for one in seeds), sum(one.false for one in seeds), delays


def frozen(place):
  """Share of the hidden weights, mean over seeds and experts in use."""
  return float(np.mean(hidden_frozen(result(place))))


def experts(place):
  """[S] in use."""
  return [max(own) + 1 for own in result(place)["report"]["expert"]]


def layers(place):
  """[L, T] percent frozen in the one expert after each task, mean over seeds; the first as configured."""
  assert experts(place) == [1, 1, 1]
  percent = 100 * arrays(place)["frozen_share"][:, :, 0].mean(axis=0, dtype=float).T
  percent[:, 0] = [100 * share for share in result(place)["config"]["method"]["fractions"]]
  return percent


def claims():
  given = f"{PAIRS}/subnetwork"
  first, second, _ = layers(given)
  yield (
    "{:.1f} % of the hidden weights are frozen after six tasks ({:.1f} % of the first layer, {:.1f} % of the second",
    *(100 * frozen(given), first[-1], second[-1]),
  )
  yield "{:.3f} among ten classes with the boundaries given, forgetting exactly 0", mean(given)
  assert mean(given, "forgetting") == 0
  yield (
    "With an expert of its own for each task {:.3f}, one network with as many replayed rows as new ones {:.3f}, one "
    "network {:.3f}",
    *(mean(f"{PAIRS}/{method}") for method in ("each_own", "er", "finetune")),
  )
  assert experts(f"{PAIRS}/each_own") == [6, 6, 6]


def onsets():
  place = f"{PAIRS}/{DETECTED}"
  there, of, false, delays = found(place)
  assert there == of and false == 0 and set(delays) == {1, 2}
  yield (
    "all {} onsets of three seeds were noticed, one or two batches after the first new row, none was false, and the "
    "accuracy is the same ({:.3f};",
    *(of, mean(place)),
  )
  batch = result(place)["config"]["method"]["batch_size"]
  for rows, seed in zip(result(place)["train_rows"], onsets_of(result(place)), strict=True):
    inside = np.cumsum(rows)[:-1] % batch
    assert ((inside == 0).sum(), (inside > 0).sum()) == (1, 4)
    assert (inside == batch - 1).tolist() == [delay == 2 for delay in seed.delay]
  yield "a batch's edge, four inside a batch, one of them with a single new row, which is the one with a delay of two"
  window = at(f"window_1024/pairs/{DETECTED}")
  assert found(window) == found(place)
  yield "instead of 4,096 (`results/subnetwork/window_1024`) changes nothing: {:.3f}, the same onsets", mean(window)


def factors():
  """Tried on the pairs and on the twenty tasks; 4 is in the table."""
  three, six = (at(f"factor{factor}/pairs/{DETECTED}") for factor in (3, 6))
  steps = np.array(result(three)["report"]["onset_step"])
  seed = next(s for s, one in enumerate(onsets_of(result(three))) if one.false)
  assert found(three)[2] == 1 and found(six)[2] == found(f"{PAIRS}/{DETECTED}")[2] == 0
  assert named(steps[seed, 0] / steps[seed, 1]) == "two thirds" and result(three)["report"]["onset_slot"][seed][0] == 0
  yield (
    "3 gives one false onset, in the first task (it consolidated the task after two thirds of its batches and took the "
    "rest for a known one; nothing was lost but inference, {:.2f}), 4 and 6 none",
    inferred(three)[1],
  )
  (there, of, *false3), (_, _, *false4) = found(at(f"factor3/long/{DETECTED}")), found(f"{LONG}/{DETECTED}")
  there6, of6, false6, _ = found(at(f"factor6/long/{DETECTED}"))
  assert there == of == found(f"{LONG}/{DETECTED}")[0]
  assert result(three)["seeds"] == result(six)["seeds"] == result(f"{PAIRS}/{DETECTED}")["seeds"]
  yield "and judged by the onsets in the training rows of the table's own seeds"
  yield f"3 and 4 find all {of} onsets, with {false3[0]} and {false4[0]} false ones"
  yield f"and 6 misses {word(of6 - there6)}, with {false6} false ones, which costs two seeds a task"
  assert (last(at(f"factor6/long/{DETECTED}")) == 0).sum(axis=1).tolist() == [1, 1, 0]


def watched():
  """Other things to watch than the scores on all weights."""
  own, at_last, loss, pseudo = (
    [at(f"factor{factor}/pairs/{name}") for factor in (3, 6)]
    for name in (DETECTED, "detected_last", "detected_loss", "detected_pseudo")
  )
  assert [found(place) for place in at_last] == [found(place) for place in own]
  (there, of, false, _), (there6, of6, false6, delays) = map(found, loss)
  assert there == of == there6 == of6 and false6 == 0 and np.mean(np.array(delays) == 1) > 0.5
  yield (
    f"Watching the loss finds all {of} as well, at 3 with {word(false)} false ones where the scores give "
    f"{word(found(own[0])[2])}, at 6 with none and mostly at once"
  )
  (there, of, _, delays), (there6, of6, _, delays6) = map(found, pseudo)
  yield (
    f"miss {word(of - there)} of {of} at 3, {word(of6 - there6)} at 6, and come up to {word(max(delays + delays6))} "
    "batches late"
  )


def literal():
  """The paper's own procedure."""
  there, of, false, _ = found(at(f"paper/pairs/{DETECTED}"))
  factor = result(at(f"paper/pairs/{DETECTED}"))["config"]["method"]["onset_factor"]
  assert there == of
  yield f"(at an onset factor of {factor:g}) all {of} onsets are noticed and {word(false)} more"
  ends = last(at("paper/pairs/subnetwork")).mean(axis=0)
  yield "the six subnetworks end at {:.2f}, {:.2f}, {:.2f}, {:.2f}, {:.2f} and {:.2f} among ten classes", *ends.tolist()
  for l, layer in enumerate(("layer 1", "layer 2", "output")):
    for preset in ("paper", "robust"):
      first, *others = layers(at(f"{preset}/pairs/subnetwork"))[l].tolist()
      yield row(f"{layer}, `{preset}`", f"{first:g}", *(f"{share:.1f}" for share in others))


def twenty():
  given, detected, wide = f"{LONG}/subnetwork", f"{LONG}/{DETECTED}", at("long_500/long/subnetwork")
  one, each = f"{LONG}/one_expert", f"{LONG}/each_own"
  assert (experts(given), experts(each), experts(one), experts(wide)) == ([2] * 3, [20] * 3, [1] * 3, [1] * 3)
  yield (
    "Boundaries given it keeps {:.3f} in two experts, where an expert for each task keeps {:.3f} in twenty, one "
    "network {:.3f}, and one network with replay {:.3f}. All tasks in one expert, as PackNet does, keep {:.3f} with "
    "{:.0%} of its hidden weights frozen",
    *(mean(place) for place in (given, each, f"{LONG}/finetune", f"{LONG}/er", one)),
    frozen(one),
  )
  there, of, false, delays = found(detected)
  assert there == of
  yield (
    "all {} onsets are noticed, with a delay of {} to {} batches, and {:.3f} is kept",
    *(of, min(delays), max(delays), mean(detected)),
  )
  back = sum(map(leads_back, result(detected)["report"]["onset_slot"], false_ones(detected)))
  yield f"{word(false).capitalize()} onsets are false: {word(back)} lead back to the slot in training"
  yield f"{word(false - back)} correct a true onset whose first rows were taken for a known task"
  yield f"{named(inferred(given)[1])} of the rows in batches of 128"
  told = [asked(detected)[f"evaluate_group=128 method.infer={rule} rows=1000"] for rule in ("features", "pictures")]
  yield (
    "with neither boundaries nor tasks told {:.3f} of the rows are answered rightly, {:.3f} by `pictures`",
    *(one["readouts"]["inferred"]["ACC"]["mean"] for one in told),
  )
  yield "one expert takes all twenty tasks, {:.3f} with {:.0%} of its hidden weights frozen", mean(wide), frozen(wide)
  packed = [result(place)["report"]["mask_bytes"][0] / 1e6 for place in (given, wide)]
  yield (
    "Twenty masks take {:.2f} MB packed to bits beside {:.0f} MB as float32 (at 500 and 500: {:.1f} MB beside {:.0f} "
    "MB)",
    *(packed[0], 32 * packed[0], packed[1], 32 * packed[1]),
  )


def false_ones(place):
  """[S] lists: the places among a seed's decisions that no edge stands before."""
  told = result(place)
  lists, batch = [], told["config"]["method"]["batch_size"]
  for rows, decided in zip(told["train_rows"], told["report"]["onset_step"], strict=True):
    task = np.searchsorted(np.cumsum(rows)[:-1] // batch, [step for step in decided if step >= 0], side="right")
    lists.append([i for i in range(len(task)) if task[i] == (task[i - 1] if i else 0)])
  return lists


def leads_back(slots, false):
  """How many of the false onsets of a seed lead to the slot that is in training anyhow."""
  return sum(slots[i] == (slots[i - 1] if i else 0) for i in false)


def rule(place, rows, of_single, group, infer=None):
  """`.48 (.37)`: accuracy with the task inferred, and the share of rows whose task was found."""
  setting = f"evaluate_group={group}" + (f" method.infer={infer}" if infer else "")
  entry = asked(place)[f"{setting} rows={of_single if group == 1 else rows}"]["readouts"]["inferred"]
  return written("{:.2f} ({:.2f})", entry["ACC"]["mean"], entry["task_recognition"]["mean"])


def rules():
  """The two tables of batch sizes and rules."""
  given, groups = f"{PAIRS}/subnetwork", (1, 8, 32, 128)
  own = [rule(given, 1000, 200, group) for group in groups]
  yield row("entropy, boundaries given", "1,000 (200 for single rows)", *own)
  own = [rule(f"{PAIRS}/{DETECTED}", 1000, 200, group) for group in groups]
  yield row("entropy, boundaries detected", "the same", *own)
  for infer, rows in (("pseudo_grad", "500 (50 for single rows)"), ("supsup_oneshot", "the same")):
    yield row(infer, rows, *(rule(given, 500, 50, group, infer) for group in groups))
  own = ["", rule(given, 500, 0, 8, "hamming"), "", rule(given, 256, 0, 128, "hamming")]
  yield row("hamming", "500 (256 in batches of 128)", *own)
  single = [rule(given, 1000, 200, 1), rule(given, 1000, 200, 1, "features"), rule(given, 1000, 200, 1, "pictures")]
  for name, infer, first in zip(("pairs, given", "", ""), ("entropy", "features", "pictures"), single, strict=True):
    yield row(name, infer, first, *(rule(given, 1000, 0, group, infer) for group in groups[1:]))
  for name, infer in zip(("twenty tasks, given", "", ""), ("entropy", "features", "pictures"), strict=True):
    yield row(name, infer, *(rule(f"{LONG}/subnetwork", 1000, 200, group, infer) for group in groups))
  for name, infer in (("twenty tasks, detected", "features"), ("", "pictures")):
    yield row(name, infer, "", "", "", rule(f"{LONG}/{DETECTED}", 1000, 0, 128, infer))
  for name, infer in (("Fashion-MNIST pairs, CNN, detected", "features"), ("", "pictures")):
    own = [rule(f"{FASHION}/{DETECTED}", 500 if group == 8 else 1000, 0, group, infer) for group in groups[1:]]
    yield row(name, infer, "", *own)


def convolutions():
  given, detected = f"{FASHION}/subnetwork", f"{FASHION}/{DETECTED}"
  shares = arrays(given)["frozen_hidden"][:, -1, 0].astype(float)
  assert mean(given, "forgetting") == 0
  expert = np.array(result(given)["report"]["expert"])[:, :5]
  assert (expert[:, :4] == 0).all() and sorted(expert[:, 4]) == [0, 1, 1]
  yield (
    "Given boundaries: {:.3f} with the task given, exactly no forgetting, {:.0f} to {:.0f} % of the first expert's "
    "hidden weights frozen after five tasks; two of three seeds put the last pair into an expert of its own",
    *(mean(given), 100 * float(shares.min()), 100 * float(shares.max())),
  )
  confusion = np.array(result(given)["task_confusion"], float).sum(axis=0)[:2]
  assert (confusion[:, 3] / confusion.sum(axis=1) > 0.9).all()  # shirt and sneaker
  yield "Finding the task does not: {:.2f} in batches of 128", inferred(given)[0]
  there, of, false, _ = found(detected)
  assert there == of
  yield (
    f"all {of} onsets are noticed, {word(false)} is false, and {{:.3f}} is kept; one network {{:.3f}}",
    *(mean(detected), mean(f"{FASHION}/finetune")),
  )


def not_run():
  """What a change of when a task's slot is noted would have told of the older results."""
  for factor in (3, 6):
    place = at(f"factor{factor}/long/{DETECTED}")
    then, now = last(place)[1, 0], last(f"{LONG}/{DETECTED}")[1, 0]
    assert (last(place)[[0, 2], 0] > 0.99).all()
    yield (
      "asked through the second one's slot: {:.2f} instead of {:.2f} for that task, {:.2f} of that seed's ACC",
      *(float(then), float(now), float(now - then) / 20),
    )


def masked():
  """Methods that mask, their task told and found, beside the subnetworks."""
  for called, name in MASKED.items():
    cells = []
    for stream in (PAIRS, LONG):
      place = f"{stream}/{name}"
      found = (mean(place), inferred(place)[0]) if place in runs(stream) else ()
      cells += [written("{:.3f}", acc) for acc in found] or ["-", "-"]
    yield row(called, *cells)
  lost = {name: -100 * mean(f"{LONG}/{name}", "BWT") for name in MASKED.values()}
  yield (
    "{:.0f} points on twenty tasks, and HAT and CAT there, {:.1f} and {:.1f} points",
    *map(lost.get, ("spg", "hat", "cat")),
  )
  assert lost["packnet"] == lost["wsn"] == lost["supsup"] == 0


def rates():
  """Of methods that mask, on the pairs with another seed: validation rows, and test rows told and found."""
  by_rate: dict[str, list[float]] = {}
  for called, name in MASKED.items():
    places = [at(f"search/masks/{name}/lr={rate}") for rate in ("0.0003", "0.001", "0.003")]
    if places[0] not in runs(at("search/masks")):
      continue
    by_rate[name] = [mean(place) for place in places]
    valid = [result(place)["readouts"]["valid"]["metrics"]["ACC"]["mean"] for place in places]
    cells = [(*numbers, inferred(place)[0]) for place, *numbers in zip(places, valid, by_rate[name], strict=True)]
    yield row(called, *(" / ".join(written("{:.4f}", number) for number in cell) for cell in cells))
  most = max(max(accs) - accs[1] for accs in by_rate.values())
  yield "rate is more than {:.1f} points better than {:g} with the task told", 100 * most, 0.001


def phrases():
  for part in (masked, rates, claims, onsets, factors, watched, literal, twenty, rules, convolutions, not_run):
    yield from part()
