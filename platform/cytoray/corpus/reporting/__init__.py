"""The data report: what was found in files of cells, as HTML and JSON."""
