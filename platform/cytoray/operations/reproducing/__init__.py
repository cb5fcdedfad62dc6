"""Rebuild a model from its lineage, corpus and weights, and compare every digest on the way."""
