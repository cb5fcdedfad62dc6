"""What the model is trained and judged for: annotation and its siblings."""
