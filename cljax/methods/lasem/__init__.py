"""Which layers to share, chosen by EM while learning (Lee, Behpour and Eaton 2021)."""

from cljax.methods.lasem.method import lasem

__all__ = ["lasem"]
