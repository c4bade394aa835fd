"""A small NAFNet."""
