"""Describe models and runs from what registry and store keep of them, without loading a model."""
