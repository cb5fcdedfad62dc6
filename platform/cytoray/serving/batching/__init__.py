"""Batches of cells for one model: which cells go together, who comes first, and what is refused or dropped."""
