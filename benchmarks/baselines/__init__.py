"""What others' tools do with the same cells; each is a function, and a main that prints JSON lines."""
