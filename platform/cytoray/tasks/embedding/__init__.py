"""Cell embeddings: nothing is trained for them, any model is asked for them."""
