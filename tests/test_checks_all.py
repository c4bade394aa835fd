"""Every restorer of the suite keeps the contract, as far as that can be told in seconds."""

from typing import Any

import pytest

from restorers import fitting
from sembench.checks import CHECKS, parametrize_with_checks
from sembench.checks.run import PytestCheck
from sembench.checks.subject import Subject
from sembench.registry import RESTORERS, find_method, plugins

NAMES = [name for name, claims in plugins(RESTORERS).items() if claims[0].distribution == "sembench"]
QUICK_TO_FIT = ("semfm_no_encoder", {"width": 8, "coarse_blocks": 1})


def with_settings(name: str) -> tuple[str, dict[str, Any]]:
    """A method whose pretrained weights are not here is checked by random ones, which always are."""
    cls = find_method(name).cls
    return name, {"encoder": "random"} if "encoder" in cls.Settings.model_fields and cls.needs(cls.Settings()) else {}


@pytest.fixture(autouse=True)
def patches_made_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fitting.fit
    monkeypatch.setattr(fitting, "fit", lambda *words, **options: original(*words, **{**options, "workers": 0}))


@parametrize_with_checks([with_settings(name) for name in NAMES])
def test_contract(check: PytestCheck) -> None:
    check()


@parametrize_with_checks([QUICK_TO_FIT], fit=True)
def test_contract_of_one_that_is_fitted(check: PytestCheck) -> None:
    check()


def test_those_that_learn_are_checked_by_the_states_that_ship() -> None:
    learning = [name for name in NAMES if find_method(name).cls.kind == "restorer" and find_method(name).cls.learns()]
    without = [name for name in learning if Subject(*with_settings(name), fit=False).shipped is None]
    assert {*without} <= {"vit_mae_imagenet"}, "whose 448 MB do not ship; the slow test fits it"
    assert len(learning) > 8


@pytest.mark.slow
@parametrize_with_checks([with_settings(name) for name in NAMES if find_method(name).cls.kind == "restorer"], fit=True)
def test_contract_of_all_that_are_fitted(check: PytestCheck) -> None:
    check()


def test_none_of_them_expects_a_failure() -> None:
    assert all(not find_method(name).cls.expected_failures for name in NAMES)
    assert len(CHECKS) == 16
