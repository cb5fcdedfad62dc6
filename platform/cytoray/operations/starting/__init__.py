"""Start a project: a folder with a commented configuration of each stage for one's own bucket."""
