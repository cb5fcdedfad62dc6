"""cytoray: single-cell foundation models from a bucket of count matrices to a served answer."""

__version__ = "0.1.0"
