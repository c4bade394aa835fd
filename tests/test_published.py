"""The leaderboard that this repository publishes."""

import shutil
from pathlib import Path

import pytest

from sembench.leaderboard.claims import Depth
from sembench.leaderboard.render import read_tabs, update_readme
from sembench.leaderboard.verify import verify

ROOT = Path(__file__).parents[1]
LEADERBOARD = ROOT / "leaderboard"


@pytest.mark.data
@pytest.mark.usefixtures("data_folder")
def test_its_files_are_proven_and_its_states_are_at_hand() -> None:
    findings = verify(LEADERBOARD, Depth(sample=0, restore=0))
    assert not [finding for finding in findings if finding.outcome == "failed"]
    proven = {(finding.subject, finding.check) for finding in findings if finding.outcome == "proven"}
    for table in LEADERBOARD.glob("*.csv"):
        wanted = {"checksums", "rows", "ranks", "protocol", "data", "eligibility", "identity", "records"}
        assert {(table.name, check) for check in wanted} <= proven
    away = [finding.told for finding in findings if finding.check == "states" and finding.outcome == "not proven"]
    assert not away


def test_the_tables_of_the_readme_are_those_of_the_leaderboard(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    assert update_readme(readme, read_tabs(LEADERBOARD))
    assert readme.read_bytes() == (ROOT / "README.md").read_bytes()
