"""Readers of count matrices, one per file format, all with the interface of ``base.CellReader``."""
