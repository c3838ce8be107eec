"""What finds the task of a picture for a method that has to be told: `GATES` by name, as `config.gate.name`."""

from collections.abc import Callable, Mapping
from typing import Any

from cljax.pieces.gated import Gate
from cljax.pieces.gates.autoencoders import Autoencoders, autoencoder
from cljax.pieces.gates.tasks import entropy, means

GATES: dict[str, Callable[..., Gate]] = {"autoencoder": autoencoder, "entropy": entropy, "means": means}
NO_GATE: Mapping[str, Any] = {"name": "none"}

__all__ = ["GATES", "NO_GATE", "Autoencoders", "autoencoder", "entropy", "means"]
