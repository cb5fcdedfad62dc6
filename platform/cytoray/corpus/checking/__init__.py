"""The data rules: faults of files and cells, profiles of sources, selections of cells."""
