"""Linear algebra: of a layer (docs/linalg.md), and of a loss in its params (docs/curvature.md).

What operations need is here at once, the rest when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from funcnet.linalg import circulant, krylov
from funcnet.linalg.estimates import Estimate
from funcnet.linalg.matrices import as_matrices, from_matrices
from funcnet.linalg.operator import Interval, Operator, Solution, symmetric
from funcnet.linalg.polar import polar  # a function in a file of its name: later it would be the file

if TYPE_CHECKING:
    from funcnet.linalg import kronecker, pca
    from funcnet.linalg.curvature import fisher, ggn, hessian
    from funcnet.linalg.factored import kfac
    from funcnet.linalg.normalized import lengths, spectral_norm, weight_norm
    from funcnet.linalg.orthogonal import orthogonal_kernel

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
    "lengths",
    "orthogonal_kernel",
    "pca",
    "polar",
    "spectral_norm",
    "symmetric",
    "weight_norm",
]
_FUNCTIONS = {"fisher": "curvature", "ggn": "curvature", "hessian": "curvature", "kfac": "factored"}
_FUNCTIONS |= dict.fromkeys(("lengths", "spectral_norm", "weight_norm"), "normalized")
_FUNCTIONS["orthogonal_kernel"] = "orthogonal"


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"funcnet.linalg.{_FUNCTIONS[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"funcnet.linalg.{name}")
    raise AttributeError(f"module 'funcnet.linalg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
