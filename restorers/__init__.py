"""The restoration methods that ship with sembench, found through entry points."""
