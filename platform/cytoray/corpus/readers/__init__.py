"""Readers of count matrices, one a file format, all with the face of ``base.CellReader``."""
