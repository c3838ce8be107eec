"""CAT: hard attention to units that similar tasks may share."""

from cljax.methods.cat.method import cat

__all__ = ["cat"]
