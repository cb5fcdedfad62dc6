"""Tokens of cells: pure functions from sparse counts to the input of the model, without files or Ray."""
