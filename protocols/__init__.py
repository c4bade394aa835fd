"""The protocols that ship with sembench: one TOML file each, named by entry points."""

from pathlib import Path

FOLDER = Path(__file__).parent

s2s = FOLDER / "s2s.toml"
s2s_midpoint = FOLDER / "s2s_midpoint.toml"
metrology = FOLDER / "metrology.toml"
