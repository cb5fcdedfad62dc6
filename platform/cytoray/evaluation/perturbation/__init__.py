"""Effects of perturbations: pseudobulk differences from controls, their prediction, and the scores of predictions."""
