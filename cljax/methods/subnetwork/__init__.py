"""A mixture of experts by subnetwork selection and masking (Kulkarni)."""

from cljax.methods.subnetwork.method import subnetwork

__all__ = ["subnetwork"]
