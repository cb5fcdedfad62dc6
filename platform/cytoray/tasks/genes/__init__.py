"""Gene embeddings: vectors of genes, and the genes nearest to one."""
