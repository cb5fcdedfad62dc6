"""Baselines that run in separate environments, as one call each; their inputs are created once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ANNBATCH_PYTHON, CACHE, QUICK, SCGPT_PYTHON, run_baseline

HF_CELLS = 4_000 if QUICK else 40_000  # 18 kB each: what scGPT's path makes of them


def scgpt_path(files: Sequence[Path], *, seconds: float = 6) -> dict[str, Any] | None:
    """scGPT's own HF-datasets path, the better of 0 and 2 workers: its record (``cells_per_s``, ``workers``, ...)."""
    arguments = ["--cache", CACHE, "--cells", HF_CELLS, "--seconds", seconds, *files]
    records = run_baseline(SCGPT_PYTHON, "hf_datasets", *arguments)
    return None if records is None else max(records, key=lambda record: record["cells_per_s"])


def annbatch_rows(files: Sequence[Path], *, seconds: float = 6) -> dict[str, dict[str, Any]] | None:
    """annbatch's bare rows by setting (64/512/32, its best, and 4096/32/256 of its README)."""
    collection = annbatch_folder(files)
    if not collection.exists() and annbatch_ingest(files) is None:
        return None
    records = run_baseline(ANNBATCH_PYTHON, "annbatch_rows", "--collection", collection, "--seconds", seconds)
    return None if records is None else {record["settings"]: record for record in records}


def annbatch_ingest(files: Sequence[Path]) -> dict[str, Any] | None:
    """annbatch's add_adatas over ``files``: ``cells_per_s``, ``peak_bytes``, ``bytes_per_cell``."""
    records = run_baseline(ANNBATCH_PYTHON, "annbatch_ingest", "--out", annbatch_folder(files), *files)
    return None if records is None else records[0]


def annbatch_folder(files: Sequence[Path]) -> Path:
    """Where its collection of these files is."""
    return CACHE / "annbatch" / files[0].parent.name
