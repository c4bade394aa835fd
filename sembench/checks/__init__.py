"""Checks that a plugin keeps its contract, for `sembench check` and for the tests of its author."""

from sembench.checks.conformance import CHECKS
from sembench.checks.outcome import CheckResult
from sembench.checks.process import ProcessApart
from sembench.checks.run import check_restorer, checks_of, parametrize_with_checks, run_apart

__all__ = [
    "CHECKS",
    "CheckResult",
    "ProcessApart",
    "check_restorer",
    "checks_of",
    "parametrize_with_checks",
    "run_apart",
]
