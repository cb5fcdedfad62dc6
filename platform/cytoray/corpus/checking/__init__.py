"""The data rules: what is wrong with a file or a cell, what a source holds, which cells are chosen."""
