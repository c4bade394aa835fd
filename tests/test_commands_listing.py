"""`sembench list`: of everything, of one thing by its name, on a terminal and into a pipe."""

import json
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from command_lines import Tell

from sembench import registry
from sembench.commands import listing
from sembench.datasets.manifest import load_manifest
from sembench.protocol import load
from sembench.registry import METRICS, PROTOCOLS, RESTORERS, find_method, plugin, plugins

QUICK = '''
from pydantic import Field
from sembench.restorer import Restorer

class Quick(Restorer):
    """Halves every gray level."""
    licence = "CC0-1.0"
    class Settings(Restorer.Settings):
        share: float = Field(0.5, gt=0, le=1, description="of each gray level")
    def restore(self, image, /):
        return image * self.settings.share
'''


@pytest.fixture
def tell(tell: Tell) -> Tell:
    return partial(tell, "list")


def test_a_pipe_gets_a_line_for_each_restorer_with_all_that_is_said_of_it(tell: Tell) -> None:
    code, output, _ = tell("restorers")
    assert code == 0
    for name in plugins(RESTORERS):
        lines = [line for line in output.splitlines() if line.split()[:1] == [name]]
        assert len(lines) == 1, name
        assert find_method(name).cls.summary() in lines[0]


def test_a_column_that_says_nothing_is_left_out(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "a", "kind": "restorer", "what": "Does it.", "settings": "", "licence": "MIT", "package": "sembench"}
    monkeypatch.setattr(listing, "restorers", lambda: [row | {"unavailable": None}])
    output = tell("restorers")[1]
    assert "Does it." in output
    assert "unavailable" not in output
    assert "package" not in output
    other = row | {"name": "b", "package": "sembench-odd", "unavailable": "package odd is missing: install it"}
    monkeypatch.setattr(listing, "restorers", lambda: [row | {"unavailable": None}, other])
    output = tell("restorers")[1]
    assert "sembench-odd" in next(line for line in output.splitlines() if line.split()[:1] == ["b"])
    assert "unavailable here: b: package odd is missing: install it" in output
    assert next(line for line in output.splitlines() if line.split()[:1] == ["a"]).rstrip().endswith("MIT")


def test_a_terminal_of_80_columns_has_room_for_what_a_restorer_is(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.console

    class Terminal(rich.console.Console):
        def __init__(self, **told: Any) -> None:
            super().__init__(**{"width": 80, "force_terminal": True, "color_system": None, **told})

    monkeypatch.setattr(rich.console, "Console", Terminal)
    output = tell("restorers")[1]
    table = output.partition("unavailable here")[0].splitlines()
    heading = next(line for line in table if line.split()[:1] == ["name"])
    assert heading.index("licence") - heading.index("what") >= 30
    assert max(map(len, table)) <= 80


def test_a_plugin_of_another_package_is_listed_with_it(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        name = "sembench-odd"

    def points(group: str) -> list[EntryPoint]:
        found = [EntryPoint("mine", "restorers.identity:Identity", group)] if group == RESTORERS else []
        for point in found:
            vars(point).update(dist=Odd())
        return found

    monkeypatch.setattr(registry, "entry_points", points)
    (row,) = json.loads(tell("restorers", "--json")[1])["restorers"]
    assert (row["name"], row["package"]) == ("mine", "sembench-odd")


def test_a_protocol_by_name_and_by_file(tell: Tell) -> None:
    protocol = load("s2s")
    code, output, _ = tell("s2s")
    assert code == 0
    for part in (protocol.question, protocol.data.set, protocol.degradation.name, protocol.digest, "2604"):
        assert part in output, part
    assert f"{protocol.metrics.primary} (primary)" in output
    assert all(name in output for name in protocol.metrics.names)
    (found,) = json.loads(tell("s2s", "--json")[1])["s2s"]
    assert found["digest"] == protocol.digest
    assert (found["primary"], found["metrics"]) == (protocol.metrics.primary, list(protocol.metrics.names))
    assert (found["seed"], found["published"]) == (protocol.seed, protocol.published)
    path = plugin(PROTOCOLS, "s2s").load()
    assert json.loads(tell(path, "--json")[1])[str(path)] == [found | {"package": None}]


@pytest.mark.parametrize("name", ["psnr_matched", "ari"])
def test_a_metric_by_name(tell: Tell, name: str) -> None:
    spec = plugin(METRICS, name).load()
    code, output, _ = tell(name)
    assert code == 0
    assert spec.title in output
    (found,) = json.loads(tell(name, "--json")[1])[name]
    assert (found["unit"], found["better"], found["tolerance"]) == (spec.unit, spec.better, spec.tolerance)
    assert ("a reference" in found["needs"]) == getattr(spec, "needs_reference", False)


def test_a_data_set_by_name(tell: Tell) -> None:
    code, output, _ = tell("kriss")
    assert code == 0
    (found,) = json.loads(tell("kriss", "--json")[1])["kriss"]
    assert found["digest"] == load_manifest("kriss").digest
    assert found["digest"] in output
    assert found["splits"] == {"train": 16, "validation": 4, "evaluation": 100}


def test_the_settings_of_a_restorer_in_a_file(tell: Tell, tmp_path: Path) -> None:
    file = tmp_path / "quick.py"
    file.write_text(QUICK)
    for target in (f"{file}:Quick", str(file)):
        code, output, _ = tell(target)
        assert code == 0
        assert "Halves every gray level." in output
        assert "CC0-1.0" in output
        assert all(word in output for word in ("share", "0.5", "of each gray level", "> 0", "<= 1"))
        assert json.loads(tell(target, "--json")[1])[target][0]["name"] == "share"
    for target, word in ((f"{file}:Quik", "did you mean 'Quick'"), (f"{tmp_path}/none.py:Quick", "no such file")):
        code, output, errors = tell(target)
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert word in errors


def test_an_unknown_name_is_one_short_line(tell: Tell) -> None:
    for name, word in (
        ("s2z", "did you mean 's2"),
        ("nafnett", "did you mean 'nafnet'?"),
        ("psnr_match", "psnr_match"),
    ):
        code, output, errors = tell(name)
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert word in errors
    errors = tell("qqqqqqqqqq")[2]
    assert len(errors) < 200
    assert "FILE.py:Class" in errors
