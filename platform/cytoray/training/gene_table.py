"""Prepare the gene table of a new model: rows from co-expression, and the rows that no training cell uses."""

# C cells, G genes, V rows of the table, D width, K components

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from cytoray.corpus.manifest import load_manifest
from cytoray.corpus.stream import CorpusStream, sample_cells
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.cells import Float32, Int64, SparseCells
from cytoray.tokens.packed import packed_gene_ids, take
from cytoray.tokens.thinning import SCALE
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import PretrainConfig
from cytoray.training.gene_statistics import gene_statistics
from cytoray.training.initial import InitialModel

MOST_CELLS = 4_000  # from which co-expression is computed: a dense matrix of them and some 6,000 genes is 100 MB
MIN_SHARE = 0.005  # of cells that express a gene; rarer genes keep their random row
_TABLE = "encoder.embedding.weight"


def coexpression_vectors(cells: SparseCells, *, vocabulary_size: int, width: int) -> tuple[Int64, Float32]:
    """Return the genes (G,) that enough cells express, and the principal components of their correlations (G, K).

    K is at most ``width``. The inner products of two rows are close to the correlation of the genes over cells.
    """
    statistics = gene_statistics(cells, vocabulary_size=vocabulary_size)
    genes = np.array(statistics.panel(MIN_SHARE), np.int64)
    shape = (cells.num_cells, vocabulary_size)
    counts = sparse.csr_matrix((cells.values, cells.gene_ids, cells.indptr), shape=shape)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    logs = np.log1p(counts[:, genes].toarray() * (SCALE / totals[:, None]).astype(np.float32))
    scaled_CG = (logs - statistics.mean[genes]) / statistics.deviation[genes]
    num = min(width, len(genes) - 1, cells.num_cells - 1)
    _, sizes, axes_KG = sparse.linalg.svds(scaled_CG.astype(np.float32), k=num, random_state=0)
    return genes, (axes_KG.T * (sizes / np.sqrt(cells.num_cells)))[:, ::-1].astype(np.float32)


def coexpression_model(config: PretrainConfig, model: ModelConfig) -> InitialModel:
    """Return the seeded weights of a new model whose rows of genes are those of ``coexpression_vectors``.

    Rows keep the length that random ones have on average, and rows of other genes are random.
    """
    manifest = load_manifest(config.store, config.corpus)
    select = None if config.validation is None else f"not ({config.validation.select})"
    cells = sample_cells(config.store, manifest, select=select, max_cells=MOST_CELLS, seed=config.train.seed)
    genes, vectors = coexpression_vectors(cells, vocabulary_size=model.vocabulary_size, width=model.width)
    torch.manual_seed(config.train.seed)
    weights = ScGPT(model, pad_id=GeneVocabulary.load_default().pad_id).state_dict()
    table_VD = weights[_TABLE]
    length = float(table_VD.norm(dim=1).mean())
    rows = torch.from_numpy(vectors.copy())
    # Components beyond the number of genes or cells keep a little of the random row.
    table_VD[genes, rows.shape[1] :] *= 0.1
    table_VD[genes, : rows.shape[1]] = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-6) * length
    settings = f"{manifest.digest} {select} {config.train.seed} {model.model_dump_json()}"
    digest = hashlib.sha256(settings.encode()).hexdigest()
    return InitialModel(f"co-expression in {config.corpus}", digest, weights)


def used_rows(stream: CorpusStream) -> npt.NDArray[np.int64]:
    """Return the ids, ascending, of the genes that any cell of a stream has, and of the special tokens before them."""
    vocabulary = GeneVocabulary.load_default()
    seen = np.zeros(vocabulary.size, bool)
    seen[[vocabulary.cls_id, vocabulary.eoc_id]] = True
    for unit in np.flatnonzero(stream.members.counts).tolist():
        seen[packed_gene_ids(take(stream.read_unit(unit).cells, stream.members.rows(unit)))] = True
    return np.flatnonzero(seen)
