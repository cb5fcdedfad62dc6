"""Batch integration: one embedding for cells of several batches, chosen without cell types."""
