"""How a check came out."""

from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["passed", "failed", "skipped", "expected"]


@dataclass(frozen=True)
class CheckResult:
    """One check of one plugin: how it came out, why and what to do, and the seconds it took.

    outcome: `expected` is a failure that was declared, with its reason; a declared one that passes has `failed`.
    """

    name: str
    outcome: Outcome
    message: str
    seconds: float
    subject: str = ""

    def as_record(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "subject": self.subject,
            "name": self.name,
            "outcome": self.outcome,
            "message": self.message,
            "seconds": round(self.seconds, 3),
        }


class CheckFailed(Exception):
    """A check found something wrong; the message says what, and what to do."""


class CheckSkipped(Exception):
    """A check does not apply here; the message says why."""
