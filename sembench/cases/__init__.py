"""From a protocol to its cases: where each image is, how it is cut, how it is degraded."""

from sembench.cases.case import Case, CaseLeftOut, CasePlan, CaseSpec
from sembench.cases.fields import PhantomSpec, roles
from sembench.cases.flat import FlatSpec, flat_fields
from sembench.cases.lines import PHANTOM
from sembench.cases.pairs import STAND_IN
from sembench.cases.plan import plan_cases
from sembench.cases.tiles import TileSetSpec

__all__ = [
    "PHANTOM",
    "STAND_IN",
    "Case",
    "CaseLeftOut",
    "CasePlan",
    "CaseSpec",
    "FlatSpec",
    "PhantomSpec",
    "TileSetSpec",
    "flat_fields",
    "plan_cases",
    "roles",
]
