"""Cells at rest: read, checked, ingested into shards, streamed in a reproducible order."""
