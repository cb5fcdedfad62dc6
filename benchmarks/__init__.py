"""Measurements of cytoray against what people use today: `make bench-data` runs them all and prints one table."""
