"""The explorer: a page on which a scientist drops a file of cells and looks at the model's answers."""
