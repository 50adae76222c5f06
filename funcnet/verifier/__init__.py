"""Is this gradient formula right? Formula against autodiff of the definition, leaf by leaf, in float64."""

from funcnet.verifier.compare import verify
from funcnet.verifier.finding import KINDS, Finding, Row
from funcnet.verifier.model import verify_model
from funcnet.verifier.pytorch import verify_torch
from funcnet.verifier.report import FormulaError, Report
from funcnet.verifier.same import verify_batching, verify_jvp, verify_same

__all__ = [
    "KINDS",
    "Finding",
    "FormulaError",
    "Report",
    "Row",
    "verify",
    "verify_batching",
    "verify_jvp",
    "verify_model",
    "verify_same",
    "verify_torch",
]
