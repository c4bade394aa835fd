"""What a run tells of the code that made it."""

import os
import subprocess
from pathlib import Path

import pytest

from sembench.execution import provenance


def _git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_the_state_of_the_checkout_is_read_without_writing_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that is killed meanwhile leaves index.lock, and the next `git commit` is refused."""
    file = tmp_path / "sembench" / "execution" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "first")
    os.utime(file, (1e9, 1e9))
    index = tmp_path / ".git" / "index"
    before = index.read_bytes()
    monkeypatch.setattr(provenance, "__file__", str(file))
    found = provenance.git_state()
    assert found is not None
    assert found["clean"]
    assert len(found["commit"]) == 40
    assert index.read_bytes() == before
    file.write_text("changed")
    assert provenance.git_state() == found | {"clean": False}
