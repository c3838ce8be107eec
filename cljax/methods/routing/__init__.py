"""Routing networks with co-training (Collier et al. 2020)."""

from cljax.methods.routing.method import routing

__all__ = ["routing"]
