"""The protocols that ship with sembench: one TOML file each, named by entry points."""

from pathlib import Path

FOLDER = Path(__file__).parent

s2s = FOLDER / "s2s.toml"
s2s_midpoint = FOLDER / "s2s_midpoint.toml"
s2s_validation = FOLDER / "s2s_validation.toml"
metrology = FOLDER / "metrology.toml"
s2r = FOLDER / "s2r.toml"
s2r_broad = FOLDER / "s2r_broad.toml"
real_pairs = FOLDER / "real_pairs.toml"
clustering = FOLDER / "clustering.toml"
