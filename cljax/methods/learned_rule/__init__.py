"""A learned update rule at work (Xiong, Ren and Urtasun)."""

from cljax.methods.learned_rule.method import learned_rule

__all__ = ["learned_rule"]
