"""scGPT's own loading path: a Hugging Face dataset in torch format, a random sampler, DataLoader workers, DataCollator.

Run by ``.venv-bench-scgpt``: ``python -m benchmarks.baselines.hf_datasets --cache FOLDER --workers 0 2 FILE.h5ad...``
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, RandomSampler

from benchmarks.baselines.measuring import read_csr, show, take_for
from benchmarks.baselines.scgpt import CLS_ID, PAD_VALUE, load_scgpt, make_collator

ROWS_PER_BATCH = 1_000  # what datasets' own writer uses


def write_dataset(files: list[Path], num_cells: int, target: Path) -> None:
    """Cells as ``datasets`` caches them: an Arrow stream of lists, int64 ids and float32 values, ``<cls>`` first."""
    values, indices, indptr = read_csr(files, num_cells)
    schema = pa.schema({"id": pa.int64(), "genes": pa.list_(pa.int64()), "expressions": pa.list_(pa.float32())})
    partial = target.with_suffix(".part")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(indptr) - 1, ROWS_PER_BATCH):
            rows = indptr[start : start + ROWS_PER_BATCH + 1]
            borders = rows - rows[0]
            genes = np.insert(indices[rows[0] : rows[-1]].astype(np.int64), borders[:-1], CLS_ID)
            counts = np.insert(values[rows[0] : rows[-1]].astype(np.float32), borders[:-1], PAD_VALUE)
            offsets = pa.array((borders + np.arange(len(rows))).astype(np.int32))
            columns = [pa.array(np.arange(start, start + len(rows) - 1))]
            columns += [pa.ListArray.from_arrays(offsets, pa.array(flat)) for flat in (genes, counts)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    partial.rename(target)


def make_loader(arrow: Path, wheels: Path, *, num_workers: int, batch_size: int) -> DataLoader[Any]:
    """scGPT's pretraining loader over that file."""
    dataset = datasets.Dataset.from_file(str(arrow)).with_format("torch")
    return DataLoader(
        dataset, batch_size=batch_size, sampler=RandomSampler(dataset), drop_last=False, num_workers=num_workers,
        collate_fn=make_collator(load_scgpt(wheels)), persistent_workers=num_workers > 0,
    )  # fmt: skip


def main() -> None:
    """Print one JSON line a number of workers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=40_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6)
    options = parser.parse_args()
    arrow = options.cache / "hf" / f"{options.files[0].parent.name}-{options.cells}.arrow"
    if not arrow.exists():
        arrow.parent.mkdir(parents=True, exist_ok=True)
        write_dataset(options.files, options.cells, arrow)
    for num_workers in options.workers:
        torch.set_num_threads(2 if num_workers == 0 else 1)  # DataLoader sets one in its workers
        loader = make_loader(arrow, options.cache / "wheels", num_workers=num_workers, batch_size=options.batch_size)
        figures = take_for(loader, lambda batch: len(batch["gene"]), seconds=options.seconds)
        bytes_per_cell = arrow.stat().st_size / options.cells
        show(baseline="hf_datasets", workers=num_workers, bytes_per_cell=bytes_per_cell, **figures)


if __name__ == "__main__":
    main()
