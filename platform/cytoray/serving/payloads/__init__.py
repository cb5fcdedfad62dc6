"""Bodies of requests and answers: JSON, Arrow, npz, h5ad and parquet, plain or compressed, within limits."""
