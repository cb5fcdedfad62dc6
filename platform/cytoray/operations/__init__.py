"""Operate cytoray beyond one process: jobs on clusters, and checks of what they need."""
