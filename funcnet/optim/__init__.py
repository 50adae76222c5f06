"""Optimizers that know which leaf is which matrix: optax transformations (docs/optim.md)."""

from funcnet.optim.muon import muon, normuon, scale_by_muon
from funcnet.optim.soap import scale_by_factors, shampoo, soap

__all__ = ["muon", "normuon", "scale_by_factors", "scale_by_muon", "shampoo", "soap"]
