"""Shared fixtures: the folder of real data, and a user's own cache."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder that SEMBENCH_DATA names; a test that asks for it is skipped where it is not set."""
    named = os.environ.get("SEMBENCH_DATA", "")
    if not named or not Path(named).is_dir():
        pytest.skip("needs real data: set SEMBENCH_DATA to a folder laid out as <set>/<file>")
    return Path(named)
