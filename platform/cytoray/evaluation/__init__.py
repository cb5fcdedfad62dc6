"""Scores, simple baselines and plots, over plain arrays."""
