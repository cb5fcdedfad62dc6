"""Checks of what cytoray needs around it, each with what was seen and a remedy."""
