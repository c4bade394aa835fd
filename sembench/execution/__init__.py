"""One run: what is to be done, workers that do it, records that keep it."""
