"""A pipeline that takes seconds, since it trains nothing: an ingest of small files, and a bundle that is promoted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.errors import CytorayError
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.operations.pipeline.reading import Pipeline, read_pipeline
from cytoray.operations.pipeline.records import StageTask
from cytoray.operations.pipeline.stage_job import do_task
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary


@dataclass
class HereRunner:
    """Does a stage in this process, as a job does in its own; ``codes`` are the exit codes so far."""

    is_stopping: bool = False
    ran: list[str] = field(default_factory=list)

    def run(self, task: StageTask) -> int:
        """Do it."""
        self.ran.append(task.stage)
        try:
            do_task(task)
        except CytorayError as error:
            return error.exit_code
        return 0


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 40 cells."""
    folder = tmp_path_factory.mktemp("cells")
    synthesise(folder, SynthConfig(num_cells=120, num_files=3, num_genes=300, mean_genes=60.0, num_donors=6))
    return folder


@pytest.fixture
def sources(cells: Path, tmp_path: Path) -> Path:
    """A folder with two of the files."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in (0, 1):
        shutil.copy(cells / f"part-{number:03d}.h5ad", folder)
    return folder


@pytest.fixture
def add_file(cells: Path, sources: Path) -> Callable[[], Path]:
    """Put the third file beside them."""
    return lambda: Path(shutil.copy(cells / "part-002.h5ad", sources))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A tiny model."""
    vocabulary = GeneVocabulary([f"GENE{n}" for n in range(20)] + ["<pad>", "<cls>", "<eoc>"])
    shape = ModelConfig(vocabulary_size=vocabulary.size, width=8, num_heads=2, feedforward_width=8, num_layers=1)
    torch.manual_seed(0)
    model = ScGPT(shape, pad_id=vocabulary.pad_id)
    save_bundle(ModelBundle(model, vocabulary, TokenizerConfig(), (), {"trained_by": "test"}), tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def stages(sources: Path, bundle: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Configurations of stages by name, which a test may change before it writes them."""
    return {
        "cells": {"kind": "ingest", "corpus": "blood", "sources": [{"uri": f"{sources}/"}]},
        "champion": {
            "kind": "promote", "name": "tiny", "model": str(bundle), "cache_folder": str(tmp_path / "cache"),
        },
    }  # fmt: skip


@pytest.fixture
def write(migrated_database: Path, stages: dict[str, dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Write a pipeline of ``stages``; keyword arguments are further keys of stages by name."""

    def write_one(**more: dict[str, Any]) -> Path:
        if not (tmp_path / "mlflow.db").exists():
            shutil.copy(migrated_database, tmp_path / "mlflow.db")
        document = {
            "kind": "pipeline", "name": "tiny", "store": str(tmp_path / "store"),
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "journal_folder": str(tmp_path / "journal")},
            "stages": [{"name": name, "config": config, **more.get(name, {})} for name, config in stages.items()],
        }  # fmt: skip
        path = tmp_path / "pipeline.yml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return write_one


@pytest.fixture
def read(write: Callable[..., Path]) -> Callable[..., Pipeline]:
    """Write a pipeline and read it."""
    return lambda **more: read_pipeline(write(**more))


@pytest.fixture
def runner() -> HereRunner:
    """Does stages in this process."""
    return HereRunner()
