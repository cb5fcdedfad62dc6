"""Pretraining: a model learns to predict the expression of hidden genes, and is evaluated on held-out cells."""
