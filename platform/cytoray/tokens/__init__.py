"""What a cell is to the model: pure functions from sparse counts to tokens; no files, no Ray."""
