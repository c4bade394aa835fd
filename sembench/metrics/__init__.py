"""Metrics: pure functions of images, and the table that says what each one means and needs."""
