"""All stages by one file: what is done is skipped, what was killed continues, a page shows where a model is from."""
