"""Linear algebra: of a layer (docs/linalg.md), and of a loss in its params (docs/curvature.md)."""

from funcnet.linalg import circulant, kronecker, krylov, pca
from funcnet.linalg.curvature import fisher, ggn, hessian
from funcnet.linalg.estimates import Estimate
from funcnet.linalg.factored import kfac
from funcnet.linalg.matrices import as_matrices, from_matrices
from funcnet.linalg.operator import Interval, Operator, Solution, symmetric
from funcnet.linalg.polar import polar

__all__ = [
    "Estimate",
    "Interval",
    "Operator",
    "Solution",
    "as_matrices",
    "circulant",
    "fisher",
    "from_matrices",
    "ggn",
    "hessian",
    "kfac",
    "kronecker",
    "krylov",
    "pca",
    "polar",
    "symmetric",
]
