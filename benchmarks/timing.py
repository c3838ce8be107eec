"""How time is taken: one process on one core, every subject in turn, round after round.

A ratio is made within each round, so that a machine that slows down for a while slows both sides; the median of the
rounds is reported with the least and the largest. Seconds are CPU time of this process, wall time stands beside them.
"""

import gc
import os
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np


class Subject(Protocol):
  """One thing to be timed. Every call returns when its work is done."""

  steps: int  # of a task; where several seeds learn, of all of them together

  def train(self, task: int) -> None:
    """Learns one whole task, 0 or 1."""

  def keep(self) -> None:
    """Remembers what has been learnt so far."""

  def back(self) -> None:
    """Returns to what was kept."""

  def accuracy(self) -> float:
    """Mean test accuracy over tasks 0 and 1."""


class Timing(NamedTuple):
  """Microseconds a step, one number a round."""

  cpu: tuple[float, ...]
  wall: tuple[float, ...]


class Ratio(NamedTuple):
  """The median of the rounds' ratios, and their range."""

  median: float
  low: float
  high: float


def cores() -> list[int]:
  """The cores that this process may use; an empty list where the system does not tell."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin() -> None:
  """Keeps this process and its later threads to one core; must come before the first JAX computation."""
  if cores():
    os.sched_setaffinity(0, {cores()[-1]})


def learn(subject: Subject) -> float:
  """Both tasks, which also compiles and warms up; leaves the subject between them. The accuracy afterwards."""
  subject.train(0)
  subject.keep()
  subject.train(1)
  accuracy = subject.accuracy()
  subject.back()
  return accuracy


def one(subject: Subject) -> tuple[float, float]:
  """Microseconds a step of task 1, CPU and wall, from what was kept."""
  subject.back()
  gc.collect()
  wall, cpu = time.perf_counter(), time.process_time()
  subject.train(1)
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  return cpu / subject.steps * 1e6, wall / subject.steps * 1e6


def interleave(subjects: Mapping[str, Subject], rounds: int) -> dict[str, Timing]:
  """Each subject once a round, every other round in reverse order."""
  taken: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
  for r in range(rounds):
    for name in list(subjects)[:: -1 if r % 2 else 1]:
      taken[name].append(one(subjects[name]))
  return {name: Timing(*map(tuple, zip(*pairs, strict=True))) for name, pairs in taken.items()}


def ratio(over: Timing, under: Timing) -> Ratio:
  """`over` / `under` by CPU time, round by round."""
  each = np.array(over.cpu) / np.array(under.cpu)
  return Ratio(float(np.median(each)), float(each.min()), float(each.max()))
