"""Gene regulatory networks: which transcription factors regulate which genes, from cells and, if named, a model."""
