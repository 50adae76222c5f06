"""Is this gradient formula right? Formula against autodiff of the definition, leaf by leaf, in float64."""

from funcnet.verifier.compare import verify
from funcnet.verifier.model import verify_model
from funcnet.verifier.report import KINDS, Finding, FormulaError, Report, Row

__all__ = ["KINDS", "Finding", "FormulaError", "Report", "Row", "verify", "verify_model"]
