"""Regression: a number of each cell, such as an age or a score, predicted from its genes."""
