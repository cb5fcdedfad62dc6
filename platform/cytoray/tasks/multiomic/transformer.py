"""Answers of a transformer of several modalities: a joint embedding, and one modality predicted from the others.

model = MultiomicTransformer.open("run:multiomic", store="s3://bucket/cytoray")
rna = model.pack("rna", counts, gene_names)
model.embed({"rna": rna})                      # (C, D), of the modalities that are given; genes alone are enough
model.predict({"rna": rna}, "protein")         # (C, F) bins of each protein, from the other modalities of the cells
"""

# C cells, B cells of one minibatch, D width, F features of a modality, T tokens

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch.nn import functional as F

from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.tokens.collator import PackedMinibatch
from cytoray.tokens.features import RNA, feature_token, modality_codes
from cytoray.tokens.packed import PackedCells, pack_rows, take
from cytoray.tokens.tokenizer import CellTokenizer

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
CELLS_AT_A_TIME = 32
Cells = Mapping[str, PackedCells]  # over the model's token ids, by modality: rna, protein, ...


@dataclass(frozen=True, eq=False)
class _Tokens:
    """Tokens of B cells, cell after cell."""

    rows: Int64  # (T,)
    ids: Int64  # (T,)
    values: Float32  # (T,)


class MultiomicTransformer:
    """A bundle whose model has tokens of several modalities."""

    def __init__(self, bundle: ModelBundle) -> None:
        """Raises ModelError for a model of genes alone."""
        self.bundle, self._features = bundle, bundle.features()
        if not self._features:
            raise ModelError(
                "This model has tokens of genes alone.",
                remedy="Use one of `cytoray finetune-multiomic`, whose bundle lists its features.",
            )
        self._tokenizers: dict[str, CellTokenizer] = {RNA: bundle.tokenizer()} | {
            part.modality: part.tokenizer(bundle.vocabulary, bundle.tokenizer_config, bundle.inference)
            for part in self._features
        }

    @classmethod
    def open(cls, uri: str, **places: Any) -> Self:
        """Open the model that ``uri`` names; ``places`` (store, tracking, cache_folder) are those of ``open_model``."""
        from cytoray.registry.opening import open_model

        return cls(open_model(uri, **places).bundle)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities: rna, then the others."""
        return tuple(self._tokenizers)

    def names(self, modality: str) -> tuple[str, ...]:
        """Return the names of the F genes or features that the model has of a modality; ModelError if it has none."""
        conditions = self.bundle.conditions
        assert conditions is not None, "a model of several modalities has conditions"
        found = conditions.panel if modality == RNA else conditions.features.get(modality)
        if found is None or modality not in self._tokenizers:
            raise ModelError(f"The model has no modality {modality!r}.", remedy=f"It has {', '.join(self.modalities)}.")
        return tuple(found)

    def pack(self, modality: str, counts: Any, names: Sequence[str]) -> PackedCells:
        """Convert counts (C, F), sparse or dense, of named genes or features to cells; unknown names are left out.

        Raises ModelError for values below zero, whose counts are lost.
        """
        values = sparse.csr_matrix(counts)
        if (values.data < 0).any():
            raise ModelError(
                f"{modality} has values below zero, such as {values.data[values.data < 0][0]:g}.",
                remedy="Give raw counts, neither centred (CLR) nor scaled.",
            )
        if modality == RNA:
            ids = self.bundle.vocabulary.map_genes(list(names)).ids
        else:
            known = {feature_token(modality, name) for name in self.names(modality)}
            tokens = [feature_token(modality, name) for name in names]
            index = self.bundle.vocabulary.index
            ids = np.array([index[token] if token in known else -1 for token in tokens], np.int32)
        are_counts = bool((values.data == np.rint(values.data)).all())
        return pack_rows(values, ids, np.arange(values.shape[0], dtype=np.uint64), counts=are_counts)

    def embed(self, cells: Cells) -> Float32:
        """Return the embeddings (C, D) of cells by all modalities that are given, each of length 1."""
        model, parts = self.bundle.model.eval(), []
        with torch.inference_mode():
            for rows in _stretches(_num_cells(cells)):
                batch = self._collate([self._tokenise(name, part, rows) for name, part in cells.items()], len(rows))
                parts.append(F.normalize(model.embed(batch).float(), dim=-1).cpu().numpy())
        return np.concatenate(parts)

    def predict(self, cells: Cells, modality: str) -> Float32:
        """Predict all genes or features of a modality from the others, in bins, (C, F) in the order of ``names``.

        A modality with more features than a cell may have tokens is predicted part by part.
        """
        index = self.bundle.vocabulary.index
        names = self.names(modality)
        tokens = names if modality == RNA else [feature_token(modality, name) for name in names]
        ids = np.array([index[token] for token in tokens], np.int64)
        known = {name: part for name, part in cells.items() if name != modality}
        if not known:
            raise ModelError(f"{modality} is predicted from another modality.", remedy="Give one of them as well.")
        limit = self._tokenizers[modality].max_length - 1
        found = np.empty((_num_cells(cells), len(ids)), np.float32)
        with torch.inference_mode():
            for rows in _stretches(len(found)):
                shown = [self._tokenise(name, part, rows) for name, part in known.items()]
                for start in range(0, len(ids), limit):
                    some = slice(start, min(start + limit, len(ids)))
                    found[rows, some] = self._predict(shown, ids[some], len(rows))
        return found

    def _predict(self, shown: list[_Tokens], ids: Int64, num_cells: int) -> Float32:
        """Predicted bins (B, F) of hidden tokens of all cells."""
        hidden = _Tokens(
            np.repeat(np.arange(num_cells), len(ids)),
            np.tile(ids, num_cells),
            np.full(num_cells * len(ids), self.bundle.tokenizer_config.mask_value, np.float32),
        )
        batch = self._collate([*shown, hidden], num_cells)
        output = self.bundle.model.eval()(batch).expression.value.float().cpu().numpy()
        wanted = np.isin(batch.gene_ids.cpu().numpy(), ids)
        order = np.argsort(ids)  # tokens of a cell stand in the order of their ids
        found = np.empty((num_cells, len(ids)), np.float32)
        found[:, order] = output[wanted].reshape(num_cells, len(ids))
        return found

    def _tokenise(self, modality: str, cells: PackedCells, rows: Int64) -> _Tokens:
        """Tokens of some cells in one modality, without ``<cls>``; none of a cell in which it was not measured."""
        tokenizer = self._tokenizers[modality]
        some = take(cells, rows)
        tokens = tokenizer(some)
        cell = np.repeat(np.arange(len(rows)), tokens.lengths)
        kept = (some.num_genes_per_cell > 0)[cell]
        kept[tokens.indptr[:-1]] = False
        return _Tokens(cell[kept], tokens.gene_ids[kept].astype(np.int64), tokens.values[kept])

    def _collate(self, parts: Sequence[_Tokens], num_cells: int) -> PackedMinibatch:
        """Put ``<cls>`` and the tokens of all modalities, in the order of their ids, one cell after another."""
        vocabulary, config = self.bundle.vocabulary, self.bundle.tokenizer_config
        rows = np.concatenate([np.arange(num_cells), *(part.rows for part in parts)])
        ids = np.concatenate([np.full(num_cells, vocabulary.cls_id), *(part.ids for part in parts)])
        values = np.concatenate([np.full(num_cells, config.cls_value, np.float32), *(part.values for part in parts)])
        order = np.lexsort((np.where(ids == vocabulary.cls_id, -1, ids), rows))
        first_ids = [part.first_id for part in self._features]
        codes = modality_codes(ids[order], first_ids, cls_id=vocabulary.cls_id)
        model = self.bundle.model.config
        batch = PackedMinibatch(
            torch.from_numpy(ids[order]),
            torch.from_numpy(values[order]),
            tuple(np.bincount(rows, minlength=num_cells).tolist()),
            np.arange(num_cells, dtype=np.uint64),
            # Embeddings do not depend on the batch; decoders answer for the first one.
            batch_labels=torch.zeros(num_cells, dtype=torch.int64) if model.num_batch_labels else None,
            modalities=torch.from_numpy(codes),
        )
        return batch.to(self.bundle.model.device)


def _num_cells(cells: Cells) -> int:
    sizes = {part.num_cells for part in cells.values()}
    assert len(sizes) == 1, "the same cells in every modality"
    return sizes.pop()


def _stretches(num_cells: int) -> list[Int64]:
    """Rows of neighbouring cells, a few at a time."""
    return [np.arange(start, min(start + CELLS_AT_A_TIME, num_cells)) for start in range(0, num_cells, CELLS_AT_A_TIME)]
