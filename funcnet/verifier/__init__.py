"""Is this gradient formula right? Formula against autodiff of the definition, leaf by leaf, in float64."""

from funcnet.verifier.compare import verify
from funcnet.verifier.finding import KINDS, Finding, Row
from funcnet.verifier.model import verify_model
from funcnet.verifier.report import FormulaError, Report

__all__ = ["KINDS", "Finding", "FormulaError", "Report", "Row", "verify", "verify_model"]
