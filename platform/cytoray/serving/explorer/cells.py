"""The cells of a session on disk: by cell for the model, and by gene for the page, without reading either whole."""

# C cells, N non-zero entries, V genes of the vocabulary

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import SparseCells

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
SCALE = 10_000.0  # counts per cell to which expression is normalised
_FILES = {"gene_ids": np.int32, "values": np.float32, "by_gene_rows": np.int32, "by_gene_values": np.float32}


class CellWriter:
    """Writes cells slab by slab; ``finish`` turns them around, so that the values of one gene lie together."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._lengths: list[Int64] = []
        self._ids: list[npt.NDArray[np.uint64]] = []
        self._files = {name: (folder / name).open("wb") for name in ("gene_ids", "values")}

    def add(self, cells: SparseCells) -> None:
        """Append cells."""
        self._files["gene_ids"].write(cells.gene_ids.astype(np.int32).tobytes())
        self._files["values"].write(cells.values.astype(np.float32).tobytes())
        self._lengths.append(cells.num_genes_per_cell)
        self._ids.append(cells.cell_ids)

    def finish(self, *, num_genes: int, totals: npt.NDArray[np.float64], genes: Int32, about: dict[str, Any]) -> None:
        """Write what else is known: each cell's sum (C,), the vocabulary's genes measured, and ``about``."""
        for file in self._files.values():
            file.close()
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(self._lengths))]).astype(np.int64)
        arrays: dict[str, npt.NDArray[Any]] = {
            "indptr": indptr,
            "cell_ids": np.concatenate(self._ids),
            "totals": totals,
            "genes": genes,
        }
        for name, array in arrays.items():
            np.save(self._folder / f"{name}.npy", array)
        _turn_around(self._folder, indptr, num_genes)
        (self._folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _turn_around(folder: Path, indptr: Int64, num_genes: int, *, rows_at_a_time: int = 4_096) -> None:
    """Write the entries ordered by gene and, within a gene, by cell."""
    gene_ids, values = (_open(folder, name) for name in ("gene_ids", "values"))
    slabs = [
        (start, min(start + rows_at_a_time, len(indptr) - 1)) for start in range(0, len(indptr) - 1, rows_at_a_time)
    ]
    counts = np.zeros(num_genes, np.int64)
    for start, stop in slabs:
        counts += np.bincount(gene_ids[indptr[start] : indptr[stop]], minlength=num_genes)
    starts = np.concatenate([[0], np.cumsum(counts)])
    np.save(folder / "by_gene.npy", starts)
    if not starts[-1]:
        return
    rows_out, values_out = (
        np.memmap(folder / name, kind, "w+", shape=(int(starts[-1]),))
        for name, kind in (("by_gene_rows", np.int32), ("by_gene_values", np.float32))
    )
    filled = starts[:-1].copy()
    for start, stop in slabs:
        here = slice(indptr[start], indptr[stop])
        order = np.argsort(gene_ids[here], kind="stable")
        genes = gene_ids[here][order]
        firsts = np.searchsorted(genes, genes)  # where the run of each gene begins
        places = filled[genes] + np.arange(len(genes)) - firsts
        rows_out[places] = (np.repeat(np.arange(start, stop), np.diff(indptr[start : stop + 1])))[order]
        values_out[places] = values[here][order]
        filled += np.bincount(genes, minlength=num_genes)


def _open(folder: Path, name: str) -> npt.NDArray[Any]:
    """Map an array's file into memory; an empty file cannot be mapped."""
    path = folder / name
    if not path.exists() or path.stat().st_size == 0:
        return np.empty(0, _FILES[name])
    return np.memmap(path, _FILES[name], "r")


@dataclass(frozen=True, eq=False)
class StoredCells:
    """The cells that a CellWriter wrote, mapped into memory."""

    folder: Path
    gene_ids: Int32  # (N,)
    values: Float32  # (N,)
    indptr: Int64  # (C + 1,)
    cell_ids: npt.NDArray[np.uint64]  # (C,)
    totals: npt.NDArray[np.float64]  # (C,) sums of all values of a cell, genes outside the vocabulary included
    genes: Int32  # of the vocabulary that the file has a column of, ascending
    names: list[str]  # (C,)
    rows: list[int]  # (C,) of each cell in its file
    values_are: Literal["counts", "expression"]

    @staticmethod
    def open(folder: Path) -> StoredCells:
        """Open the cells in a folder."""
        arrays: dict[str, Any] = {
            name: np.load(folder / f"{name}.npy") for name in ("indptr", "cell_ids", "totals", "genes")
        }
        about: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        big: dict[str, Any] = {name: _open(folder, name) for name in ("gene_ids", "values")}
        return StoredCells(folder, **big, **arrays, **about)

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return len(self.cell_ids)

    def take(self, start: int, stop: int) -> SparseCells:
        """Return some neighbouring cells."""
        here = slice(self.indptr[start], self.indptr[stop])
        indptr = self.indptr[start : stop + 1] - self.indptr[start]
        return SparseCells(
            np.array(self.gene_ids[here]), np.array(self.values[here]), indptr, self.cell_ids[start:stop]
        )

    def end_of_chunk(self, start: int, *, tokens: int) -> int:
        """Return where a chunk of about so many tokens ends, after at least one cell."""
        wanted = self.indptr[start:] + np.arange(self.num_cells - start + 1)  # a <cls> per cell
        return start + max(int(np.searchsorted(wanted, wanted[0] + tokens, side="right")) - 1, 1)

    def expression(self, gene: int) -> Float32:
        """Return one gene's expression (C,): log1p of counts per 10,000, or the file's own values if not counts."""
        bounds = np.load(self.folder / "by_gene.npy", mmap_mode="r")
        here = slice(int(bounds[gene]), int(bounds[gene + 1]))
        rows, values = (_open(self.folder, name)[here] for name in ("by_gene_rows", "by_gene_values"))
        found = np.zeros(self.num_cells, np.float32)
        found[rows] = self._normalised(np.asarray(values), rows)
        return found

    def top_genes(self, row: int, count: int) -> list[tuple[int, float]]:
        """Return the genes that a cell expresses most, by id, with their expression."""
        cell = self.take(row, row + 1)
        order = np.argsort(-cell.values, kind="stable")[:count]
        values = self._normalised(cell.values[order], np.full(len(order), row))
        return list(zip(cell.gene_ids[order].tolist(), values.tolist(), strict=True))

    def expression_of(self, row: int) -> Float32:
        """Return one cell's expression over the genes of the vocabulary up to the last one measured."""
        here = slice(self.indptr[row], self.indptr[row + 1])
        found = np.zeros(len(np.load(self.folder / "by_gene.npy", mmap_mode="r")) - 1, np.float32)
        values = np.asarray(self.values[here])
        found[self.gene_ids[here]] = self._normalised(values, np.full(len(values), row))
        return found

    def _normalised(self, values: Float32, rows: npt.NDArray[np.integer]) -> Float32:
        if self.values_are == "expression":
            return values
        with np.errstate(divide="ignore", invalid="ignore"):
            normalised: Float32 = np.log1p(values * (SCALE / self.totals[rows])).astype(np.float32)
        return normalised
