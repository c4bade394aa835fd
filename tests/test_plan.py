"""What a run will do: rows, and in what they are not the protocol's own."""

import pytest

from sembench import protocol
from sembench.execution.plan import plan_fits, plan_rows
from sembench.restorer import Budget


@pytest.mark.parametrize(
    ("budget", "pairs", "variant", "label"),
    [
        ("standard", None, {}, "unet"),
        ("standard", 8, {}, "unet"),
        ("standard", 2, {"pairs": 2}, "unet (pairs=2)"),
        ("standard", 0, {"pairs": 0}, "unet (pairs=0)"),
        ("quick", None, {"budget": "quick"}, "unet (budget=quick)"),
        ("quick", 1, {"budget": "quick", "pairs": 1}, "unet (budget=quick, pairs=1)"),
    ],
)
def test_another_budget_or_number_of_pairs_makes_another_row_that_says_so(
    budget: str, pairs: int | None, variant: dict[str, object], label: str
) -> None:
    asked = protocol.load("real_pairs")
    rows, _ = plan_rows(("unet", "gaussian"), (), asked)
    (own, plain), _ = plan_fits(rows, asked, "kriss", Budget.of("standard"))
    (row, other), _ = plan_fits(rows, asked, "kriss", Budget.of(budget), pairs=pairs)
    assert (row.variant, row.label) == (variant, label)
    assert (row.row_id == own.row_id) == (not variant)
    assert other == plain
    assert other.variant == {}, "what does not learn has neither"


def test_a_setting_that_is_not_the_default_is_told_and_what_the_protocol_sets_is_not() -> None:
    for name, degradation in (("s2s", "paper"), ("s2r_broad", "broad")):
        rows, _ = plan_rows(("unet", "gaussian"), ("gaussian.sigma=2", "unet.width=24"), protocol.load(name))
        unet, gaussian = rows
        assert unet.settings["degradation"] == degradation
        assert unet.label == "unet (width=24)"
        assert gaussian.label == "gaussian (sigma=2.0)"
    (spelt_out,), _ = plan_rows(("gaussian",), ("gaussian.sigma=1.0",), protocol.load("s2s"))
    assert spelt_out.variant == {}
