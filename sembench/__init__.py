"""sembench: the open benchmark for restoring scanning electron micrographs."""

__version__ = "0.1.0"
