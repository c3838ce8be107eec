"""Expert Gate on small streams, each compiled once in a process and run at any numbers."""

import functools
from typing import Any

import jax
import numpy as np
import optax

from cljax.cursor import Carry
from cljax.methods import METHODS
from cljax.types import Bank, Rows, Spec, Stream, Task
from tests import toys
from tests.subjects import Subject

SMALL = {
  "batch_size": 10,
  "epochs": 3,
  "warmup_epochs": 1,
  "code": 6,
  "autoencoder_batch": 10,
  "autoencoder_epochs": 4,
  "patience": 1,
}
NUMBERS = {"distill_weight": 1.0, "threshold": 0.85, "autoencoder_lr": 0.01}  # arguments of the compiled functions


def method_of(spec: Spec, **keywords: Any):
  return METHODS["expert_gate"](toys.mlp(spec), optax.adam(0.01), spec, **{**SMALL, **NUMBERS, **keywords})


def subject(spec: Spec, data: Stream, **keywords: Any) -> Subject:
  """One seed."""

  def make(hyper):
    return method_of(spec, **keywords, **hyper)

  chunk = keywords.pop("chunk", 16)
  return Subject(toys.experiment(make, spec, data, seeds=(0,), hyper=NUMBERS, chunk=chunk))


def at_numbers(base: Subject, **numbers: float) -> Subject:
  """The same compiled functions at other numbers."""
  hyper = {name: np.full(1, numbers.get(name, value), np.float32) for name, value in NUMBERS.items()}
  return Subject(base.experiment._replace(hyper=hyper), base, ())


@functools.cache
def toy() -> Subject:
  """Three permuted tasks of ragged lengths."""
  return subject(*toys.stream())


def state_of(carry: Carry) -> Any:
  """The state of the only seed."""
  return jax.tree.map(lambda leaf: leaf[0], carry.state)


def training(base: Subject, tasks: int, phases: tuple[int, ...] = (0, 1, 2)) -> list:
  """The units that train the first tasks in these phases; nothing is asked or saved."""
  units = [unit for unit in base.units() if unit.kind not in ("evaluate", "save")]
  return [unit for unit in units if unit.at.task < tasks and unit.at.phase in phases]


def subspaces(bases, rows=300, relabel=(), noise=0.3, seed=0) -> tuple[Spec, Stream]:
  """Tasks on linear subspaces of R^20 by the number of their basis, four classes each by two signs of coefficients:
  streams of which one knows what is related to what."""
  random = np.random.default_rng(seed)
  frames = [np.linalg.qr(np.random.default_rng(40 + basis).normal(size=(20, 3)))[0] for basis in range(9)]
  T, each = len(bases), rows + 60 + 60
  x, y = [], []
  for t, basis in enumerate(bases):
    code = random.normal(size=(each, 3)) * 1.5
    code[:, :2] += np.sign(code[:, :2])
    label = 2 * (code[:, 0] > 0) + (code[:, 1] > 0)
    y.append((label + 1) % 4 if t in relabel else label)
    x.append(code @ frames[basis].T + noise * random.normal(size=(each, 20)))
  bank = Bank(np.concatenate(x).reshape(-1, 20, 1, 1).astype(np.float32), np.concatenate(y).astype(np.int32))
  first = np.arange(T)[:, None] * each

  def split(start, stop):
    count = np.full(T, stop - start, np.int32)
    return Rows((first + np.arange(start, stop)).astype(np.int32), count, None)

  labels = np.tile(np.arange(4, dtype=np.int32), (T, 1))
  tasks = Task(split(0, rows), split(rows, rows + 60), labels, labels, np.ones((T, 4), bool))
  return Spec((20, 1, 1), T, 4, T), Stream(bank, tasks, bank, split(rows + 60, each))
