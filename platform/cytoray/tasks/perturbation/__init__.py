"""Perturbations: what cells do when genes are perturbed."""
