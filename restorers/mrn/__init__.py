"""The multi-scale refocusing network."""
