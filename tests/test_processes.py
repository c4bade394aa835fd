"""What a process says of its own memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sembench.processes import peak_memory_mb

SMALL = "from sembench.processes import peak_memory_mb; print(peak_memory_mb())"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere a process inherits its starter's peak")
def test_peak_memory_is_the_process_own_and_not_its_starters() -> None:
    held = np.ones(40_000_000)
    own = peak_memory_mb()
    assert own > held.nbytes / 2**20
    told = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, check=True)
    assert 5 < float(told.stdout) < 200
