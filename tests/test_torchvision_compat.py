"""ensure_torchvision: it mends the one known failure, hides no other, and may be called anywhere and again."""

import multiprocessing
import sys

import pytest

from sembench import torchvision_compat
from sembench.errors import UnavailableError
from sembench.torchvision_compat import ensure_torchvision


def _import_in_child() -> str:
    ensure_torchvision()
    import torchvision

    return torchvision.__name__


def test_alexnet_can_be_built_after_it_and_after_a_second_call() -> None:
    ensure_torchvision()
    ensure_torchvision()
    from torchvision.models import alexnet

    assert alexnet(weights=None).features[0].weight.shape == (64, 3, 11, 11)


def test_works_in_a_spawned_process() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_import_in_child) == "torchvision"


def _without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".", 1)[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)


def test_only_the_missing_operator_leads_to_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_torchvision(monkeypatch)
    errors: list[RuntimeError | None] = [RuntimeError("operator torchvision::nms does not exist"), None]
    declared: list[bool] = []

    def fake_import() -> None:
        error = errors.pop(0)
        if error:
            raise error

    monkeypatch.setattr(torchvision_compat, "_import_torchvision", fake_import)
    monkeypatch.setattr(torchvision_compat, "_declare_operators", lambda: declared.append(True))
    ensure_torchvision()
    assert (errors, declared) == ([], [True])


@pytest.mark.parametrize("error", [RuntimeError("libfoo is broken\nmore"), ImportError("No module named torchvision")])
def test_any_other_failure_is_one_line_with_a_mend(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    _without_torchvision(monkeypatch)

    def fail() -> None:
        raise error

    monkeypatch.setattr(torchvision_compat, "_import_torchvision", fail)
    monkeypatch.setattr(torchvision_compat, "_declare_operators", lambda: pytest.fail("must not be declared"))
    with pytest.raises(UnavailableError, match="pip install torch torchvision") as raised:
        ensure_torchvision()
    assert "\n" not in str(raised.value)
    assert str(error).split("\n")[0] in str(raised.value)


def test_a_failed_import_leaves_no_half_imported_module(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_torchvision(monkeypatch)

    def half(name: str) -> None:
        monkeypatch.setitem(sys.modules, "torchvision", object())
        monkeypatch.setitem(sys.modules, "torchvision.ops", object())
        raise RuntimeError("half way")

    monkeypatch.setattr("importlib.import_module", half)
    with pytest.raises(UnavailableError):
        ensure_torchvision()
    assert not [name for name in sys.modules if name.startswith("torchvision")]
