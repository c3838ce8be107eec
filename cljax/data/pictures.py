"""What every stream may do with its pictures: a normalisation of all rows, an augmentation of the rows in training.

`@picture_stream` declares a builder of `data.STREAMS` and gives it the keywords of `Pictures`, and of `Shape`, which
was seen to before; `dressed` does what `Pictures` says for any (spec, stream). A picture is decoded, augmented if a
training step sees it, goes through its task's own warp, and is normalised last: `config.stream.mean` and `std` are of
pictures in [0, 1], and a frame is black.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np

from cljax.data.folder import Shape
from cljax.data.sample import decode, take_task
from cljax.data.warp import MOVES, SCALES, Augmentation, Dressed, Standardisation, through
from cljax.declared import above, any_number, at_least, declared, free, one_of
from cljax.errors import ConfigError
from cljax.types import Bank, Rows, Spec, Stream

Made = TypeVar("Made", bound=Callable[..., Any])
WAYS = ("none", "train", "task")
GROUP = 1000  # pictures at once


class Pictures(NamedTuple):
  """How pictures are shown; as they are, unless something is set."""

  normalise: Annotated[
    str, one_of(WAYS, "channels to mean 0, deviation 1: of all training rows, or of those of each task by itself")
  ] = "none"
  mean: Annotated[tuple[float, ...], any_number("subtracted from each channel of 0 to 1, where normalise is none")] = ()
  std: Annotated[tuple[float, ...], above(0, "that each channel is divided by after that")._replace(least=0)] = ()
  flip: Annotated[bool, free("training pictures are mirrored at even odds, anew at each visit")] = False
  crop: Annotated[
    int, at_least(0, "pixels of a black frame, out of which training pictures are cut anew at each visit", 1024)
  ] = 0


def picture_stream(build: Made) -> Made:
  """A declared builder of streams that takes the keywords of `Pictures` and of `Shape`, too."""
  signature, own = inspect.signature(build), inspect.signature(build).parameters
  records: dict[str, Any] = {"pictures": Pictures()} | ({} if "shape" in own else {"shape": Shape()})

  @functools.wraps(build)
  def whole(*args: Any, pictures: Pictures, shape: Shape, **keywords: Any) -> tuple[Spec, Stream]:
    if "shape" in own:
      keywords["shape"] = shape
    else:
      check_shape(args[0].train.x.shape[1:], shape)
    return dressed_by(pictures, *build(*args, **keywords))

  del whole.__wrapped__  # type: ignore[attr-defined]  # `declared` asks the whole one for its keywords
  whole.__annotations__ = {**build.__annotations__, **{name: type(default) for name, default in records.items()}}
  kind = inspect.Parameter.KEYWORD_ONLY
  added = [inspect.Parameter(name, kind, default=default) for name, default in records.items()]
  whole.__signature__ = signature.replace(parameters=[*own.values(), *added])  # type: ignore[attr-defined]
  return declared("stream", given=2)(whole)  # type: ignore[return-value]


def check_shape(there: tuple[int, ...], shape: Shape) -> None:
  """ConfigError: pictures of the shape `there` were not brought to another before, as `data.join.load` does."""
  wanted = [shape.size or side for side in there[:2]] + [shape.channels or count for count in there[2:]]
  if list(there) != wanted:
    raise ConfigError(
      f"config.stream.size={shape.size} and config.stream.channels={shape.channels}, but the data has examples of "
      f"{list(there)}: bring its pictures to that by data.join.load"
    )


@declared("stream", given=2)
def dressed(spec: Spec, stream: Stream, *, pictures: Pictures = Pictures()) -> tuple[Spec, Stream]:
  """The stream with its pictures shown so.

  Raises:
    ConfigError: a wrong value, or examples that are no pictures and should be flipped or cropped.
  """
  return dressed_by(pictures, spec, stream)


def dressed_by(pictures: Pictures, spec: Spec, stream: Stream) -> tuple[Spec, Stream]:
  """The same by a record whose fields are checked one by one."""
  if pictures == Pictures():
    return spec, stream
  normalise, augment = normalisation(pictures, spec, stream), augmentation(pictures, spec)
  tasks, test = stream.tasks, stream.test

  def put_on(rows: Rows, drawn: Augmentation | None) -> Rows:
    if drawn is None and normalise is None:
      return rows
    return rows._replace(warp=Dressed(drawn, rows.warp, normalise))

  tasks = tasks._replace(train=put_on(tasks.train, augment), valid=put_on(tasks.valid, None))
  return spec, stream._replace(tasks=tasks, test=put_on(test, None))


def augmentation(pictures: Pictures, spec: Spec) -> Augmentation | None:
  """Of each task [T]; None where nothing is drawn."""
  if not (pictures.flip or pictures.crop):
    return None
  if len(spec.x_shape) != 3:
    raise ConfigError(
      f"config.stream.flip={pictures.flip} and config.stream.crop={pictures.crop} are for pictures "
      f"[height, width, channels], but the data has examples of {list(spec.x_shape)}"
    )
  if pictures.crop > min(spec.x_shape[:2]):
    raise ConfigError(
      f"config.stream.crop={pictures.crop} is more than the {min(spec.x_shape[:2])} pixels of a picture's side, and "
      "nothing of it might be left; a few pixels are usual, such as 4"
    )
  return Augmentation(np.full(spec.T, pictures.flip), np.full(spec.T, pictures.crop, np.int32))


def channels_of(spec: Spec) -> int:
  """How many means there are: of each channel of pictures, of each number of a vector, else one of all."""
  return spec.x_shape[-1] if len(spec.x_shape) in (1, 3) else 1


def normalisation(pictures: Pictures, spec: Spec, stream: Stream) -> Standardisation | None:
  """Of each task [T, channels]; None where there is none.

  Raises:
    ConfigError: a mean without a deviation, both of them and `normalise`, or not one for each channel.
  """
  mean, std, channels = pictures.mean, pictures.std, channels_of(spec)
  if not (mean or std):
    return None if pictures.normalise == "none" else of_rows(stream, channels, pictures.normalise)
  if pictures.normalise != "none":
    raise ConfigError(
      f"config.stream.normalise={pictures.normalise!r} takes mean and deviation from the data; leave it out, or leave "
      f"out config.stream.mean={mean} and config.stream.std={std}"
    )
  for name, given in (("mean", mean), ("std", std)):
    if len(given) not in (1, channels):
      raise ConfigError(
        f"config.stream.{name}={given} holds {len(given)} numbers; give both of mean and std, with one for each of "
        f"{channels} channels, or one for all"
      )
  wide = [np.broadcast_to(np.array(given, np.float64), (spec.T, channels)) for given in (mean, std)]
  return Standardisation(wide[0].astype(np.float32), (1 / wide[1]).astype(np.float32))


def of_rows(stream: Stream, channels: int, by: str) -> Standardisation:
  """By the training rows of each task, or of all, each row once; a deviation is at least one over the root of the
  number of pixels, so that a constant channel becomes zeros.

  Where a warp only moves pixels about, the statistics are of the pictures before it, so of rotated ones without the
  corners that come in; else they are of what the warp makes of them.
  """
  train = stream.tasks.train
  tables = [idx[:count] for idx, count in zip(train.idx, train.count, strict=True)]
  if train.warp is None or isinstance(train.warp, MOVES):
    groups = [[(None, rows)] for rows in tables] if by == "task" else [[(None, np.unique(np.concatenate(tables)))]]
  else:
    each = [(take_task(train.warp, t), rows) for t, rows in enumerate(tables)]
    groups = [[one] for one in each] if by == "task" else [each]
  found = [moments(shown(stream.bank, parts), channels) for parts in groups]
  mean, scale = (np.array(each, np.float32) for each in zip(*found, strict=True))
  T = len(tables)
  return Standardisation(np.broadcast_to(mean, (T, channels)).copy(), np.broadcast_to(scale, (T, channels)).copy())


def shown(bank: Bank, parts: Iterable[tuple[Any, np.ndarray]]) -> Iterable[np.ndarray]:
  """The decoded pictures of rows through a warp, a group at a time."""
  for warp, rows in parts:
    for i in range(0, len(rows), GROUP):
      row = rows[i : i + GROUP]
      x = bank.x[row]
      yield x if warp is None else np.asarray(through(warp, decode(x), row))


def moments(groups: Iterable[np.ndarray], channels: int) -> tuple[np.ndarray, np.ndarray]:
  """(mean [channels], one over the deviation [channels]) of the pictures of all groups, uint8 ones in [0, 1]."""
  count, first, second = 0, np.zeros(channels), np.zeros(channels)
  for x in groups:
    pixels = x.reshape(-1, channels).astype(np.float64) / (255 if x.dtype == np.uint8 else 1)
    count, first, second = count + len(pixels), first + pixels.sum(axis=0), second + (pixels**2).sum(axis=0)
  mean = first / count
  deviation = np.sqrt(np.maximum(second / count - mean**2, 0))
  return mean, 1 / np.maximum(deviation, count**-0.5)


def one_for_all(warp: Any, seeds: Sequence[int]) -> dict[str, dict[str, list[float]]]:
  """{seed: mean and scale} where a warp of test rows, with or without a leading axis of the seeds, normalises the
  pictures of all tasks alike; {} where it does not."""
  if not isinstance(warp, Dressed) or warp.normalise is None:
    return {}
  leaves = [np.asarray(leaf) for leaf in warp.normalise]
  if any((leaf != leaf[..., :1, :]).any() for leaf in leaves):
    return {}
  mean, scale = (np.broadcast_to(leaf, (len(seeds), *leaf.shape[-2:]))[:, 0].tolist() for leaf in leaves)
  return {str(seed): {"mean": m, "scale": s} for seed, m, s in zip(seeds, mean, scale, strict=True)}


def shown_as(stream: Stream) -> dict[str, Any]:
  """What a net is given of a picture that is asked about, as JSON: `type` of the bank; `warp`, what changes it by task,
  if anything does; `mean` and `scale` [T, channels], or [S, T, channels], where it is normalised after that."""
  warp, last = stream.test.warp, None
  if isinstance(warp, Dressed):
    warp, last = warp.warp, warp.normalise
  if isinstance(warp, Standardisation) and last is None:
    warp, last = None, warp
  told = {"type": str(stream.test_bank.x.dtype)} | ({} if warp is None else {"warp": type(warp).__name__})
  return (
    told if last is None else {**told, **{name: np.asarray(leaf).tolist() for name, leaf in last._asdict().items()}}
  )


def type_shown(warp: Any, stored: Any, normalised: Mapping[str, Any]) -> str:
  """The type of the pictures that a network is asked about: that which is stored, or float32 where each task shows them
  on a scale of its own, by its own mean and deviation or by noise.

  Args:
    warp: of the test rows.
    normalised: what `one_for_all` says of it; this a network's asker does by itself.
  """
  dressed = isinstance(warp, Dressed)
  own = dressed and warp.normalise is not None and not normalised
  scaled = isinstance(warp.warp if dressed else warp, SCALES)
  return "float32" if own or scaled else str(np.dtype(stored))
