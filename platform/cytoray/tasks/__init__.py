"""Tasks that the model is trained for and evaluated on."""
