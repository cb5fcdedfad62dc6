"""The response of cells to perturbations, predicted from control cells."""
