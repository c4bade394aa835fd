"""From a protocol to its cases: where each image is, how it is cut, how it is degraded."""

from sembench.cases.case import Case, CaseLeftOut, CasePlan, CaseSpec
from sembench.cases.fields import PhantomSpec, roles
from sembench.cases.lines import PHANTOM
from sembench.cases.plan import plan_cases

__all__ = ["PHANTOM", "Case", "CaseLeftOut", "CasePlan", "CaseSpec", "PhantomSpec", "plan_cases", "roles"]
