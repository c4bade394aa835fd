"""Published results: tables of rows, a bundle behind each, and what a stranger can verify of them."""
