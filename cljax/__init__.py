"""Continual learning in JAX and Flax. The names that most people need; all others stand in their rooms.

outcome = cljax.fit(method, *cljax.from_arrays(train, test), seeds=(0, 1, 2))
"""

import importlib
from typing import Any

EXPORTS = {  # name -> the room that it stands in, which is imported when it is asked for
  "ConfigError": "errors",
  "GATES": "pieces.gates",
  "GUARDS": "pieces.guards",
  "METHODS": "methods",
  "NETS": "nets",
  "OPTIMIZERS": "pieces.optimizers",
  "Outcome": "outcome",
  "Outputs": "types",
  "Predictor": "predict",
  "STREAMS": "data",
  "Spec": "types",
  "default": "config",
  "fit": "run",
  "gated": "pieces.gated",
  "from_arrays": "data",
  "headed": "nets",
  "train": "run",
}
__all__ = list(EXPORTS)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
  if name not in EXPORTS:
    raise AttributeError(f"module 'cljax' has no attribute {name!r}; it has {', '.join(EXPORTS)}, and its rooms")
  return getattr(importlib.import_module(f"cljax.{EXPORTS[name]}"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *EXPORTS})
