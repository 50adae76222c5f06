"""The linear algebra of a layer: operators without matrices, spectra, certified norms (docs/linalg.md)."""

from funcnet.linalg import circulant, krylov, pca
from funcnet.linalg.matrices import as_matrices, from_matrices
from funcnet.linalg.operator import Interval, Operator

__all__ = ["Interval", "Operator", "as_matrices", "circulant", "from_matrices", "krylov", "pca"]
