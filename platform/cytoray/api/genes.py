"""Embeddings of genes: those the model has for every gene, or those of genes in given cells, and nearest genes."""

# G genes, D width

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray.api.dataset import scGPTDataset
from cytoray.api.inference import Inference
from cytoray.drafts import draft_of
from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.model.fitting import MOST_TOKENS
from cytoray.model.gene_embeddings import GeneEmbeddings, static_gene_embeddings

Float32 = npt.NDArray[np.float32]


def static_embeddings(bundle: ModelBundle) -> pd.DataFrame:
    """Return each gene's encoding by the model's first layer, float32 (G, D), by symbol, without special tokens."""
    found = static_gene_embeddings(bundle)
    return pd.DataFrame(found.values, index=pd.Index(found.names, name="gene"))


def contextual_embeddings(
    bundle: ModelBundle, dataset: scGPTDataset, *, advance: Callable[[int], object]
) -> pd.DataFrame:
    """Return the mean hidden state of each gene over the cells that express it, float32 (G, D), by symbol.

    Only genes that at least one cell has are there; ``attrs["num_cells"]`` lists the number of cells of each.
    """
    sums = np.zeros((bundle.vocabulary.size, bundle.model.config.width), np.float64)
    counts = np.zeros(bundle.vocabulary.size, np.int64)
    for ids, states_TD in Inference(bundle, dataset, batch_tokens=MOST_TOKENS, advance=advance).token_states():
        np.add.at(sums, ids, states_TD)
        np.add.at(counts, ids, 1)
    there = np.flatnonzero(counts)
    if not len(there):
        raise ModelError("No cell has a gene that the model knows.", remedy="Look at dataset.report.")
    names = pd.Index([bundle.vocabulary.tokens[token] for token in there], name="gene")
    table = pd.DataFrame((sums[there] / counts[there, None]).astype(np.float32), index=names)
    table.attrs["num_cells"] = counts[there].tolist()
    return table


def nearest_genes(embeddings: pd.DataFrame, gene: str, *, num: int) -> pd.Series[float]:
    """Return the ``num`` genes of the largest cosine with ``gene``, after removing the mean of all genes.

    The mean is what all genes share; without it even unrelated genes have a large cosine. Raises ModelError for an
    unknown gene, with similar names.
    """
    if gene not in embeddings.index:
        similar = difflib.get_close_matches(gene, list(map(str, embeddings.index)), n=3)
        raise ModelError(
            f"Unknown gene {gene!r}.", remedy=f"Did you mean {', '.join(similar)}?" if similar else "Give a symbol."
        )
    genes = GeneEmbeddings(tuple(map(str, embeddings.index)), embeddings.to_numpy(np.float32))
    found = genes.nearest(genes.rows[gene], num)
    return pd.Series(dict(found), dtype=np.float64, name="cosine").rename_axis("gene")


def write_embeddings(embeddings: pd.DataFrame, path: Path) -> None:
    """Write gene embeddings as parquet (a column per dimension) or h5ad (obs are genes); whole or not at all."""
    table = embeddings.set_axis([f"d{number}" for number in range(embeddings.shape[1])], axis=1)
    with draft_of(path) as draft:
        if path.suffix == ".parquet":
            table.to_parquet(draft)
        else:
            anndata.AnnData(table.to_numpy(np.float32), obs=pd.DataFrame(index=table.index)).write_h5ad(draft)


def as_rows(cosines: pd.Series[float]) -> Sequence[dict[str, object]]:
    """Return nearest genes as plain values."""
    return [{"gene": str(name), "cosine": float(value)} for name, value in cosines.items()]
