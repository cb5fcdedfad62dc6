"""The parts of an ingest: its plan, its two passes, what lies between them."""
