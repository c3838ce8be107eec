"""A network that grows: retrained in part, expanded and split as tasks need it (Yoon et al. 2018)."""

from cljax.methods.den.method import den

__all__ = ["den"]
