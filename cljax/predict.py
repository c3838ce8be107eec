"""Prediction from a finished run with one expert in memory at a time: the gate first, then the experts it names.

predictor = Predictor("runs/gate", seed=0)
answers = predictor(x)          # x [B, height, width, channels], uint8 or in [0, 1]
answers.label, answers.slot, predictor.loaded
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
from cljax.errors import ConfigError
from cljax.files import read_sealed, telling
from cljax.recipe import recipe
from cljax.types import Array, Method, Spec


class Answers(NamedTuple):
  """What the experts say to rows, and who said it."""

  label: np.ndarray  # [B] int32 global label, -1 where no gate knows the row
  slot: np.ndarray  # [B] int32 the expert that answered, -1 none
  probabilities: np.ndarray  # [B, T] of the gate
  errors: np.ndarray  # [B, T] what the gate went by


def told_of(config: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
  """What `Predictor` must know of a run, as JSON."""
  return {**spec._asdict(), "config": config}


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
    self.folder = artifacts.folder_of(workdir, seed)
    path = self.folder.parent / "spec.json"
    if not path.exists():
      raise ConfigError(f"{workdir} holds no parts to load: it is no finished run, or its method leaves none")
    way = "the run's command writes it again once its result.json is deleted"
    told = read_sealed(path, way)
    if not self.folder.is_dir():
      seeds = sorted(each.name.removeprefix("seed_") for each in self.folder.parent.glob("seed_*"))
      raise ConfigError(f"{workdir} has no parts of seed {seed}; it has those of the seeds {', '.join(seeds)}")
    with telling(path, way):
      spec: dict[str, Any] = {name: told[name] for name in Spec._fields if name in told}
      spec |= {name: tuple(value) for name, value in spec.items() if isinstance(value, list)}
      self.spec = Spec(**spec)
      if method is None:
        method = recipe(completed(told["config"]), self.spec)({})
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

  def route(self, x: Array) -> Any:
    """The gate's `Routes` of pictures [B, ...].

    Raises:
      ConfigError: pictures of another shape.
    """
    if np.shape(x)[1:] != self.spec.x_shape:
      raise ConfigError(f"pictures have the shape {np.shape(x)[1:]}, but the run was trained on {self.spec.x_shape}")
    return self.serve.route(self.gate, decode(jnp.asarray(x)))

  def __call__(self, x: Array) -> Answers:
    """Routes the rows, groups them by expert, and loads one expert after the other; the order is kept."""
    routes = self.route(x)
    slot, labels = np.asarray(routes.slot), np.full(len(x), -1, np.int32)
    for k in sorted({int(k) for k in slot if k >= 0}, key=lambda k: (k != self.expert[0], k)):
      if k != self.expert[0]:
        self.expert = (-1, None)  # the one before goes first
        self.expert = (k, self.load(f"expert_{k}"))
      part, mine = self.expert[1], np.flatnonzero(slot == k)
      logits = self.serve.answer(part, decode(jnp.asarray(np.asarray(x)[mine])))
      answer = np.where(part["classes"], np.asarray(logits), -np.inf).argmax(axis=-1)
      labels[mine] = np.asarray(part["labels"])[answer]
    return Answers(labels, slot, np.asarray(routes.probabilities), np.asarray(routes.errors))
