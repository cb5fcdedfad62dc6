"""Evidence of a transformer: in-silico knock-outs, cosines of gene embeddings, and attention.

Knock-out: in cells that express a factor its value is set to 0, and the change of the values that the model generates
for other genes is recorded, less that after the knock-out of a random gene of the same cell and a like value. The
genes whose values are compared are hidden from the model. Attention: of the last layer, each row of a cell's scores
replaced by ranks, then each column, averaged over heads and cells (Cui et al. 2024); ties share their mean rank.
Both are sums over cells, so that memory does not grow with their number: one cell's heads x L x L at a time.
"""

# T transcription factors, G targets, L tokens of a cell, H heads, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from scipy.stats import rankdata

from cytoray.evaluation.networks.cells import SMALLEST, Float32, Float64, Int64
from cytoray.evaluation.networks.programs import without_components
from cytoray.model.bundle import ModelBundle
from cytoray.model.gene_embeddings import static_gene_embeddings
from cytoray.tasks.networks.candidates import Candidates
from cytoray.tasks.networks.reading import NetworkData
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.collator import PackedMinibatch, collate_packed
from cytoray.tokens.packed import pack
from cytoray.tokens.tokenizer import TokenizedCells

KNOCK_OUT, EMBEDDING, ATTENTION = "knock_out", "embedding", "attention"
NUM_COMPONENTS = 2  # removed from gene embeddings
ATTENTION_CELLS = 100  # of each half of the cells
HIDDEN = 0.4  # share of a cell's genes whose values are generated, as in pretraining
CELLS_AT_A_TIME = 16


@dataclass(frozen=True, eq=False)
class ModelEvidence:
    """A model of cells, asked about the genes of networks."""

    bundle: ModelBundle
    num_cells: int = 100  # that express a factor, in which it is knocked out
    seed: int = 0

    def points(self, genes: Sequence[str]) -> Float64:
        """Return vectors of genes without what all share and their first components, (len(genes), D).

        A gene that the model does not know is at 0.
        """
        tokens = self._tokens(genes)
        known = np.flatnonzero(tokens >= 0)
        found = np.zeros((len(genes), self.bundle.model.config.width))
        if len(known):
            vectors = static_gene_embeddings(self.bundle, tokens[known].tolist()).values
            found[known] = without_components(vectors, num=NUM_COMPONENTS)
        return found

    def of_genes(self, candidates: Candidates) -> dict[str, Float32]:
        """Return the cosine of the embeddings of factors and targets, (T, G)."""
        genes = sorted({*candidates.tfs, *candidates.targets})
        place = {gene: row for row, gene in enumerate(genes)}
        points = self.points(genes)
        units = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), SMALLEST)
        first, second = ([place[gene] for gene in names] for names in (candidates.tfs, candidates.targets))
        return {EMBEDDING: np.asarray(units[first] @ units[second].T, np.float32)}

    def warnings(self, candidates: Candidates) -> list[str]:
        """Return warnings about genes that the model does not know."""
        genes = sorted({*candidates.tfs, *candidates.targets})
        missing = int((self._tokens(genes) < 0).sum())
        return [f"the model does not know {missing:,} of {len(genes):,} genes"] if missing else []

    def of_cells(self, data: NetworkData, rows: Int64, candidates: Candidates) -> dict[str, Float32]:
        """Return the evidence that the model gives about cells of ``data``, (T, G) per kind."""
        tokens = self._tokenize(data, rows)
        sums = _Sums(self._tokens(candidates.tfs), self._tokens(candidates.targets), self.bundle.vocabulary.size)
        with torch.inference_mode():
            for row in self._sample(tokens, ATTENTION_CELLS):
                self._attend(tokens.take(np.array([row])), sums)
            for number, token in enumerate(sums.tfs.tolist()):
                if token >= 0:
                    self._knock_out(tokens, number, token, sums)
        return {KNOCK_OUT: sums.mean(KNOCK_OUT), ATTENTION: sums.mean(ATTENTION)}

    def _knock_out(self, tokens: TokenizedCells, number: int, token: int, sums: _Sums) -> None:
        """Add the effect of one factor's knock-out in cells that express it."""
        cell_of = np.repeat(np.arange(tokens.num_cells), tokens.lengths)
        having = np.unique(cell_of[(tokens.gene_ids == token) & (tokens.values > 0)])
        rng = np.random.default_rng([self.seed, token])
        if len(having) > self.num_cells:
            having = np.sort(rng.choice(having, self.num_cells, replace=False))
        for start in range(0, len(having), CELLS_AT_A_TIME):
            some = tokens.take(having[start : start + CELLS_AT_A_TIME])
            places, others, hidden = _choose(some, token, rng)
            effects = self._changes(some, [places, others], hidden)
            sums.add(KNOCK_OUT, number, some.gene_ids[hidden], effects[0] - effects[1])

    def _changes(self, tokens: TokenizedCells, removed: Sequence[Int64], hidden: Int64) -> list[Float64]:
        """Return the absolute change of the values of hidden tokens after setting some tokens to 0, for each choice."""
        batch = collate_packed(tokens).to(self.bundle.model.device)
        values = batch.values.clone()
        values[torch.from_numpy(hidden)] = float(self.bundle.tokenizer_config.mask_value)
        found = []
        for places in [np.empty(0, np.int64), *removed]:
            changed = values.clone()
            changed[torch.from_numpy(places)] = 0
            found.append(self._generate(replace(batch, values=changed))[hidden])
        return [np.abs(each - found[0]) for each in found[1:]]

    def _generate(self, batch: PackedMinibatch) -> Float64:
        config = self.bundle.model.config
        if config.num_batch_labels:
            labels = torch.zeros(len(batch.lengths), dtype=torch.int64, device=batch.gene_ids.device)
            batch = replace(batch, batch_labels=labels)
        return np.asarray(self.bundle.model.predict_expression(batch).double().cpu().numpy(), np.float64)

    def _attend(self, one: TokenizedCells, sums: _Sums) -> None:
        """Add the rank-normalised attention of one cell: of targets (queries) to factors (keys)."""
        batch = collate_packed(one).to(self.bundle.model.device)
        if self.bundle.model.config.num_batch_labels:
            batch = replace(batch, batch_labels=torch.zeros(1, dtype=torch.int64, device=batch.gene_ids.device))
        scores_HLL = self.bundle.model.attention(batch)[0].float().cpu().numpy()
        mean_LL = np.zeros(scores_HLL.shape[1:])
        for scores_LL in scores_HLL:
            rows_LL = rankdata(scores_LL, axis=1) / len(scores_LL)
            mean_LL += rankdata(rows_LL, axis=0) / len(scores_LL) / len(scores_HLL)
        for place, token in enumerate(one.gene_ids.tolist()):
            if (number := sums.number.get(token)) is not None:
                sums.add(ATTENTION, number, one.gene_ids, mean_LL[:, place])

    def _sample(self, tokens: TokenizedCells, num: int) -> Int64:
        rows = np.arange(tokens.num_cells)
        rng = np.random.default_rng([self.seed, 1])
        return rows if len(rows) <= num else np.sort(rng.choice(rows, num, replace=False))

    def _tokenize(self, data: NetworkData, rows: Int64) -> TokenizedCells:
        """Tokenize cells over the model's vocabulary; genes that it does not know are left out."""
        ids = self._tokens(data.genes)
        known = np.flatnonzero(ids >= 0)
        merge = sparse.csr_matrix(
            (np.ones(len(known), np.float32), (known, ids[known])), (len(data.genes), self.bundle.vocabulary.size)
        )
        mapped = sparse.csr_matrix(data.values[rows] @ merge)
        mapped.sort_indices()
        keys = np.arange(mapped.shape[0], dtype=np.uint64)
        cells = SparseCells(
            mapped.indices.astype(np.int32), mapped.data.astype(np.float32), mapped.indptr.astype(np.int64), keys
        )
        return self.bundle.tokenizer()(pack(cells, counts=not data.log_normalised))

    def _tokens(self, genes: Sequence[str]) -> Int64:
        return np.asarray(self.bundle.vocabulary.map_genes(list(genes), sum_older=True).ids, np.int64)


class _Sums:
    """Running means of evidence, by factor and gene token."""

    def __init__(self, tfs: Int64, targets: Int64, num_tokens: int) -> None:
        self.tfs, self._targets = tfs, targets
        self.number = {token: row for row, token in enumerate(tfs.tolist()) if token >= 0}
        self._column = np.full(num_tokens, -1, np.int64)
        self._column[targets[targets >= 0]] = np.flatnonzero(targets >= 0)
        shape = (len(tfs), len(targets))
        self._sums = {kind: np.zeros(shape, np.float32) for kind in (KNOCK_OUT, ATTENTION)}
        self._counts = {kind: np.zeros(shape, np.float32) for kind in (KNOCK_OUT, ATTENTION)}

    def add(self, kind: str, number: int, tokens: Sequence[int] | np.ndarray, values: Float64) -> None:
        """Add values of genes, by token, to the row of a factor."""
        columns = self._column[np.asarray(tokens)]
        known = columns >= 0
        np.add.at(self._sums[kind][number], columns[known], values[known].astype(np.float32))
        np.add.at(self._counts[kind][number], columns[known], np.float32(1))

    def mean(self, kind: str) -> Float32:
        """Return the mean over cells, (T, G); a pair that no cell has gets the mean of its factor's pairs."""
        counts, sums = self._counts[kind], self._sums[kind]
        found = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        totals = counts.astype(bool).sum(axis=1, keepdims=True)
        usual = found.sum(axis=1, keepdims=True) / np.maximum(totals, 1)
        return np.where(counts > 0, found, usual).astype(np.float32)


def _choose(tokens: TokenizedCells, token: int, rng: np.random.Generator) -> tuple[Int64, Int64, Int64]:
    """Choose places in each cell: of the factor, of a random gene of a like value, and those that are hidden."""
    places, others, hidden = [], [], []
    for start, stop in zip(tokens.indptr[:-1].tolist(), tokens.indptr[1:].tolist(), strict=True):
        cell = np.arange(start + 1, stop)  # without <cls>
        own = int(cell[tokens.gene_ids[cell] == token][0])
        rest = cell[cell != own]
        gaps = np.abs(tokens.values[rest] - tokens.values[own])
        like = rest[np.lexsort((rng.random(len(rest)), gaps))[: max(1, len(rest) // 10)]]
        places.append(own)
        if len(like):
            others.append(int(rng.choice(like)))
            free = rest[rest != others[-1]]
            hidden.append(free[rng.random(len(free)) < HIDDEN])
    return np.array(places, np.int64), np.array(others, np.int64), np.concatenate([np.empty(0, np.int64), *hidden])
