"""Timelines of phases that do nothing."""

import numpy as np

from cljax.timeline import Look, Timeline
from cljax.types import Phase, Spec


def edge(key, state, view, clock):
  return state


def phase(name="fit", batch=10, **fields):
  fields = fields if "steps" in fields else {"epochs": 1, **fields}
  return Phase(name, batch, lambda *_: None, **fields)


def look(when):
  return Look(when, "test", lambda *_: [], when, lambda *_: {}, lambda *_: None)


BESIDE, EPOCH, BEFORE_EXIT = look("row"), look("epoch"), look("exit")


def timeline(phases, rows, chunk=4, save_every=0, boundaries=True, tasks=None, looks=()):
  """Of one seed for a flat list of rows, else of each seed in rows [S][T]."""
  rows = np.atleast_2d(np.array(rows, np.int64))
  T = rows.shape[1]
  spec = Spec((4,), T, 2, T if boundaries else 1, boundaries)
  return Timeline(tuple(phases), spec, rows, tuple(range(T)) if tasks is None else tasks, chunk, save_every, looks)
