"""Versions of a model in a running service: load another one, check it, exchange them, and go back."""
