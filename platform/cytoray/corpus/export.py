"""Write a corpus back as AnnData: h5ad, zarr v3, or the collection of zarr groups that annbatch reads.

The matrix is streamed row group by row group and obs column by column, so that memory does not grow with the corpus.
"""

# C cells, G genes

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cytoray import progress, storage
from cytoray.corpus.checking.selection import select_rows, selected_columns
from cytoray.corpus.export_files import CsrWriter, open_target, write_frame
from cytoray.corpus.ingesting.obs_tables import OWN_COLUMNS
from cytoray.corpus.manifest import CellFileRecord, CorpusManifest, ShardRecord, corpus_uri, load_manifest
from cytoray.corpus.shards import open_shard
from cytoray.corpus.streaming.obs import read_tables
from cytoray.errors import CorpusError
from cytoray.tokens.gene_table import load_human_genes
from cytoray.tokens.packed import PackedCells, packed_counts, packed_gene_ids, take
from cytoray.tokens.vocabulary import GeneVocabulary

Format = Literal["h5ad", "zarr", "annbatch"]
CELLS_PER_DATASET = 1_000_000  # of an annbatch collection
INDEX = "_obs_name"


@dataclass(frozen=True)
class ExportOptions:
    """Format, target and selection of an export."""

    to: str  # a local path that does not exist yet
    format: Format = "h5ad"
    select: str | None = None  # an expression over obs; all cells without one


@dataclass(frozen=True)
class ExportResult:
    """The result of an export."""

    num_cells: int
    num_genes: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    """The settings of one part of an export."""

    store: str
    manifest: CorpusManifest
    rows: tuple[npt.NDArray[np.int64], ...]  # the chosen rows of each shard
    gene_ids: npt.NDArray[np.int32]  # (G,) of the columns
    advance: progress.Advance

    @property
    def num_cells(self) -> int:
        """Number of cells to be written."""
        return sum(map(len, self.rows))


def export(
    store: str, name: str, options: ExportOptions, *, advance: progress.Advance = progress.silent
) -> ExportResult:
    """Write the cells of a corpus, or those that an expression over obs selects, to a local path.

    Cells come in the order of the corpus with all of their obs, the index being their names; columns are the genes that
    occur in it. ``annbatch`` writes a folder of AnnData zarr groups. Raises CorpusError if nothing is selected or the
    path exists.
    """
    target, select = Path(options.to).expanduser().absolute(), options.select
    if target.exists():
        raise CorpusError(f"{target} already exists.", remedy="Name another path, or remove it.", path=str(target))
    manifest = load_manifest(store, name)
    job = _Job(store, manifest, tuple(_select(store, manifest, select)), _genes(store, manifest), advance)
    if job.num_cells == 0:
        raise CorpusError(f"Corpus {name!r}: no cell is selected by {select!r}.", remedy="Look at its obs.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    if partial.is_dir():
        shutil.rmtree(partial)
    if options.format == "annbatch":
        _write_collection(job, partial)
    else:
        _write_one(job, partial, as_zarr=options.format == "zarr")
    partial.rename(target)
    return ExportResult(job.num_cells, len(job.gene_ids), (str(target),))


def _write_collection(job: _Job, folder: Path) -> None:
    """Write groups ``dataset_0``, ``dataset_1``, … of whole shards."""
    import zarr

    root = zarr.open_group(folder, mode="w", zarr_format=3)
    for number, part in enumerate(_parts(job)):
        _write_one(part, folder / f"dataset_{number}", as_zarr=True)
    root.update_attributes({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})


def _parts(job: _Job) -> Iterator[_Job]:
    """Split the job into runs of shards of about ``CELLS_PER_DATASET`` cells."""
    chosen: list[npt.NDArray[np.int64]] = []
    nothing = np.empty(0, np.int64)
    start = 0
    for number, rows in enumerate(job.rows):
        chosen.append(rows)
        if sum(map(len, chosen)) >= CELLS_PER_DATASET or number + 1 == len(job.rows):
            after = len(job.rows) - number - 1
            part = replace(job, rows=(*[nothing] * start, *chosen, *[nothing] * after))
            if part.num_cells:
                yield part
            start, chosen = number + 1, []


def _write_one(job: _Job, path: Path, *, as_zarr: bool) -> None:
    """Write one AnnData file or group."""
    with open_target(path, as_zarr=as_zarr) as target:
        counts = job.manifest.values == "counts"
        columns = np.full(int(job.gene_ids.max(initial=0)) + 1, -1, np.int32)
        columns[job.gene_ids] = np.arange(len(job.gene_ids), dtype=np.int32)
        writer = CsrWriter(target, "X", num_columns=len(job.gene_ids), counts=counts, as_zarr=as_zarr)
        for cells in _cells(job, lambda shard: shard):
            writer.add(packed_counts(cells), columns[packed_gene_ids(cells)], cells.num_genes_per_cell)
            job.advance(cells.num_cells)
        writer.close()
        write_frame(target, "var", *_var(job.gene_ids))
        _write_obs(job, target)
        for name, features in job.manifest.modalities.items():
            _write_modality(job, target, name, features, as_zarr=as_zarr)


def _write_modality(job: _Job, target: Any, name: str, features: tuple[str, ...], *, as_zarr: bool) -> None:
    """Write a modality as ``obsm/NAME`` and its features as ``uns/NAME_features``."""
    from anndata.io import write_elem

    counts = job.manifest.modality_values[name] == "counts"
    writer = CsrWriter(target, f"obsm/{name}", num_columns=len(features), counts=counts, as_zarr=as_zarr)
    for number, shard in enumerate(job.manifest.shards):
        if name not in shard.modalities:
            writer.add(np.empty(0, np.uint32), np.empty(0, np.int32), np.zeros(len(job.rows[number]), np.int64))
            continue
        only = replace(job, manifest=job.manifest.model_copy(update={"shards": (shard,)}), rows=(job.rows[number],))
        for cells in _cells(only, lambda record: record.modalities[name]):
            writer.add(packed_counts(cells), packed_gene_ids(cells), cells.num_genes_per_cell)
    writer.close()
    write_elem(target, f"uns/{name}_features", np.array(features, object))


def _cells(job: _Job, file: Callable[[ShardRecord], CellFileRecord]) -> Iterator[PackedCells]:
    """Read the chosen cells, row group by row group."""
    uri = corpus_uri(job.store, job.manifest.name)
    for shard, rows in zip(job.manifest.shards, job.rows, strict=True):
        record = file(shard)
        reader = open_shard(storage.join(uri, record.key), record)
        first = 0
        for group, place in enumerate(record.row_groups):
            inside = rows[(rows >= first) & (rows < first + place.num_cells)] - first
            first += place.num_cells
            if len(inside):
                cells = reader.read_group(group)
                yield cells if len(inside) == cells.num_cells else take(cells, inside)


def _select(store: str, manifest: CorpusManifest, expression: str | None) -> Iterator[npt.NDArray[np.int64]]:
    """Find the chosen rows of each shard."""
    if expression is None:
        yield from (np.arange(shard.num_cells) for shard in manifest.shards)
        return
    where = f"corpus {manifest.name}"
    columns = selected_columns(expression, where=where)
    for table, shard in zip(read_tables(store, manifest, columns), manifest.shards, strict=True):
        frame = table.to_pandas() if columns else pd.DataFrame(index=range(shard.num_cells))
        yield np.flatnonzero(select_rows(frame, expression, where=where))


def _genes(store: str, manifest: CorpusManifest) -> npt.NDArray[np.int32]:
    """Return the ids of the corpus's genes, from the tables in the shards' footers."""
    uri = corpus_uri(store, manifest.name)
    tables = [open_shard(storage.join(uri, shard.key), shard).genes() for shard in manifest.shards]
    return np.unique(np.concatenate([np.empty(0, np.int32), *tables]))


def _var(gene_ids: npt.NDArray[np.int32]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Return symbols, and the Ensembl id of each if it is known."""
    tokens = GeneVocabulary.load_default().tokens
    symbols = np.array([tokens[gene] for gene in gene_ids], object)
    ensembl = {symbol: gene.ensembl_id for gene in reversed(load_human_genes()) for symbol in gene.symbols}
    return symbols, {"ensembl_id": np.array([ensembl.get(symbol, "") for symbol in symbols], object)}


def _write_obs(job: _Job, target: Any) -> None:
    """Write the obs table, one column at a time."""
    names = [*(name for name in OWN_COLUMNS if name != INDEX), *job.manifest.obs_columns]
    index = _column(job, INDEX).to_numpy(zero_copy_only=False)
    write_frame(target, "obs", index, {name: lambda name=name: _series(_column(job, name)) for name in names})


def _column(job: _Job, name: str) -> pa.Array:
    """Read one column of the chosen cells; text as a dictionary, which takes a few bytes per cell."""
    pieces = []
    for table, rows in zip(read_tables(job.store, job.manifest, [name]), job.rows, strict=True):
        piece = table.column(name).take(pa.array(rows))
        pieces.append(piece.dictionary_encode() if pa.types.is_string(piece.type) and name != INDEX else piece)
    joined = pa.chunked_array([chunk for piece in pieces for chunk in piece.chunks], pieces[0].type)
    return joined.unify_dictionaries().combine_chunks()


def _series(column: pa.Array) -> Any:
    """Convert a column to AnnData's types: categories, nullable flags and integers, NaN for missing floats."""
    if pa.types.is_dictionary(column.type):
        return column.to_pandas().array
    if column.null_count and pa.types.is_boolean(column.type):
        return column.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get).array
    if column.null_count and pa.types.is_integer(column.type):
        return column.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get).array
    return column.to_numpy(zero_copy_only=False)
