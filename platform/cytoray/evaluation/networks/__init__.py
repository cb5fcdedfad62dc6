"""Gene regulatory networks from arrays: evidence for edges, its aggregation, and scores beside a curated table."""
