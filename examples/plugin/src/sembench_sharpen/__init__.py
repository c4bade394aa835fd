"""A plugin of sembench: one restorer, one metric, one protocol."""

from pathlib import Path

SMALL_DEFOCUS = Path(__file__).parent / "small_defocus.toml"
