"""Stages as jobs on a cluster: checked, shipped, submitted once, followed, stopped and continued."""
