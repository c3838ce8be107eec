"""Prediction from a finished run with one expert in memory at a time: the gate first, then the experts it names.

predictor = Predictor("runs/gate", seed=0)
answers = predictor(x)          # x [B, height, width, channels], uint8 or in [0, 1]
answers.label, answers.slot, predictor.loaded

Pictures are of the kind that the run was trained on: of uint8 ones also as floats in [0, 1], which these become.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cljax import artifacts
from cljax.config import completed
from cljax.data.sample import decode
from cljax.data.warp import Standardisation
from cljax.errors import ConfigError
from cljax.files import read_sealed, telling
from cljax.paths import located
from cljax.recipe import recipe
from cljax.recorded import found_again
from cljax.types import Array, Method, Spec


class Answers(NamedTuple):
  """What the experts say to rows, and who said it."""

  label: np.ndarray  # [B] int32 global label, -1 where no gate knows the row, or the picture is not finite
  slot: np.ndarray  # [B] int32 the expert that answered, -1 none
  probabilities: np.ndarray  # [B, T] of the gate
  errors: np.ndarray  # [B, T] what the gate went by


def told_of(config: Mapping[str, Any], spec: Spec, pictures: Any, normalised: Any) -> dict[str, Any]:
  """What `Predictor` must know of a run, as JSON; `pictures` is the type that they are shown in, `normalised` {seed: by
  what all tasks normalise their pictures}."""
  told = {**spec._asdict(), "config": config, "pictures": str(np.dtype(pictures))}
  return {**told, "normalised": normalised} if normalised else told


def checked_pictures(x: Any, shape: tuple[int, ...], trained: str) -> np.ndarray:
  """Pictures [B, *shape] uint8, or float32 in [0, 1], that a run of uint8 pictures may be asked about; [B, *shape]
  float32 of any numbers for a run of floats. NaN and infinity pass.

  Args:
    trained: the dtype of the run's own pictures.

  Raises:
    ConfigError: none at all, another shape, another type, or numbers of another scale.
  """
  x = np.asarray(x)
  if x.shape[1:] != shape:
    raise ConfigError(f"pictures have the shape {x.shape[1:]}, but the run was trained on {shape}")
  if not len(x):
    raise ConfigError(f"pictures of the shape {x.shape} are none at all: give at least one")
  real, whole = np.issubdtype(x.dtype, np.floating), trained == "uint8"
  if not real and not (whole and x.dtype == np.uint8):
    kind = "uint8 of 0 to 255, or floats of 0 to 1" if whole else "floats of the scale that its tasks show them on"
    raise ConfigError(f"pictures are {x.dtype}, but the run was trained on {trained}: give {kind}")
  finite = x[np.isfinite(x)] if real else x
  low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
  if whole and (low < 0 or high > (1 if real else 255)):
    way = "give them before they are normalised, which the run does" if low < 0 else "divide them by 255"
    raise ConfigError(f"pictures hold {low:g} to {high:g}, but floats of uint8 pictures are 0 to 1: {way}")
  if whole and 0 < high <= (1.001 / 255 if real else 1):  # rounded, in whatever type they were divided
    kind = "floats of 0 to 1" if real else "uint8 of 0 to 255"
    raise ConfigError(f"pictures hold {low:g} to {high:g}, which is black for {kind}: they were divided by 255 before")
  return x.astype(np.float32) if real else x


def normalisation_of(told: Mapping[str, Any], seed: int) -> Standardisation | None:
  """By what a run normalises the pictures of all tasks, as `told_of` told it; None by nothing."""
  own = told.get("normalised", {}).get(str(seed))
  return None if own is None else Standardisation(*(jnp.array(own[name], jnp.float32) for name in ("mean", "scale")))


class Predictor:
  """The gate of one seed of a finished run, and whichever expert was asked for last.

  Attributes:
    loaded: {part: bytes read from disk}, in the order of loading.
  """

  def __init__(self, workdir: epath.Path | str, seed: int = 0, method: Method | None = None):
    """
    Args:
      method: of a run that `fit` began, which no config tells.

    Raises:
      ConfigError: no finished run, another method without parts, an unknown seed or a damaged file.
    """
    self.folder = artifacts.folder_of(located(workdir), seed)
    path = self.folder.parent / "spec.json"
    if not path.exists():
      raise ConfigError(
        f"{workdir} holds no parts to load: it is no finished run, or its method leaves none, as only those do that "
        "load one expert at a time; launch.evaluate asks any run, one behind config.gate too, and "
        "launch.export writes the weights of a network"
      )
    way = "the run's command writes it again once its result.json is deleted"
    told = read_sealed(path, way)
    if not self.folder.is_dir():
      seeds = sorted(each.name.removeprefix("seed_") for each in self.folder.parent.glob("seed_*"))
      raise ConfigError(f"{workdir} has no parts of seed {seed}; it has those of the seeds {', '.join(seeds)}")
    with telling(path, way):
      spec: dict[str, Any] = {name: told[name] for name in Spec._fields if name in told}
      spec |= {name: tuple(value) for name, value in spec.items() if isinstance(value, list)}
      self.spec = Spec(**spec)
      self.config: Mapping[str, Any] = told["config"]
      if method is None:
        method = recipe(completed(found_again(located(workdir), self.config)), self.spec)({})
      by_source = "float32" if self.config.get("stream", {}).get("source") == "synthetic" else "uint8"
      self.pictures: str = told.get("pictures", by_source)  # older runs do not tell
      self.normalise = normalisation_of(told, seed)
      self.serve: Any = method.serve
      self.shapes = jax.eval_shape(lambda: method.parts(method.init(jax.random.key(0))))
    self.loaded: dict[str, int] = {}
    self.gate = self.load("gate")
    self.expert: tuple[int, Any] = (-1, None)

  def load(self, name: str) -> Any:
    """One part from disk, its bytes noted."""
    path = self.folder / f"{name}.npz"
    tree = artifacts.fill(self.shapes[name], artifacts.read(path), path)
    self.loaded[name] = path.stat().length
    return tree

  def decoded(self, x: np.ndarray) -> Array:
    """Checked pictures as the network is shown them."""
    pixels = decode(jnp.asarray(x))
    return pixels if self.normalise is None else self.normalise(pixels)

  def route(self, x: Array) -> Any:
    """The gate's `Routes` of pictures [B, ...], no slot for those that are not finite.

    Raises:
      ConfigError: pictures that the run cannot be asked about, see `checked_pictures`.
    """
    x = checked_pictures(x, tuple(self.spec.x_shape), self.pictures)
    routes = self.serve.route(self.gate, self.decoded(x))
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    return routes._replace(slot=jnp.where(finite, routes.slot, -1))

  def __call__(self, x: Array) -> Answers:
    """Routes the rows, groups them by expert, and loads one expert after the other; the order is kept."""
    routes = self.route(x)
    x = checked_pictures(x, tuple(self.spec.x_shape), self.pictures)
    slot, labels = np.asarray(routes.slot), np.full(len(x), -1, np.int32)
    for k in sorted({int(k) for k in slot if k >= 0}, key=lambda k: (k != self.expert[0], k)):
      if k != self.expert[0]:
        self.expert = (-1, None)  # the one before goes first
        self.expert = (k, self.load(f"expert_{k}"))
      part, mine = self.expert[1], np.flatnonzero(slot == k)
      logits = self.serve.answer(part, self.decoded(x[mine]))
      answer = np.where(part["classes"], np.asarray(logits), -np.inf).argmax(axis=-1)
      labels[mine] = np.asarray(part["labels"])[answer]
    return Answers(labels, slot, np.asarray(routes.probabilities), np.asarray(routes.errors))
