"""Expert Gate (Aljundi et al. 2017)."""

from cljax.methods.expert_gate.method import expert_gate

__all__ = ["expert_gate"]
