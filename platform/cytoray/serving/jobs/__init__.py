"""Jobs: answers to any number of cells, by a process beside the service, whose state is files in a store."""
