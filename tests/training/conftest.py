"""A small committed corpus with planted types, and the smallest real runs over it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig
from cytoray.training.config import OptimizerConfig, PretrainConfig, ShapeConfig, TrainConfig, WorkersConfig

TOKENS = TokenizerConfig(max_length=41)
NUM_CELLS = 96
# A large epsilon: the gradient of attention's key bias is only rounding, which Adam would magnify.
OPTIMIZER: dict[str, Any] = {"learning_rate": 1e-2, "warmup_steps": 2, "epsilon": 1e-3}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the corpus ``cells``: 96 cells of three planted types."""
    from cytoray.corpus.ingest import ingest

    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    genes = list(GeneVocabulary.load_default().tokens[:120])
    kinds = rng.integers(0, 3, NUM_CELLS)
    rates = np.exp(rng.normal(0, 1, (3, len(genes))))[kinds]
    counts = rng.poisson(rates * rng.uniform(0.2, 1.0, (NUM_CELLS, 1)))
    obs = pd.DataFrame({"kind": np.array(["B", "NK", "T"])[kinds]}, index=[f"cell{n}" for n in range(NUM_CELLS)])
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes))
    adata.write_h5ad(folder / "cells.h5ad")
    config = IngestConfig(store=str(folder), corpus="cells", sources=(SourceConfig(uri=str(folder / "cells.h5ad")),))
    ingest(config)
    return folder


@pytest.fixture
def pretrain_config(make_config: Callable[..., Callable[..., PretrainConfig]], tmp_path: Path) -> Any:
    """Build the configuration of a tiny pretraining run; keywords replace parts of it."""
    return make_config(tmp_path / "journal")


@pytest.fixture(scope="session")
def make_config(store: Path) -> Callable[[Path], Callable[..., PretrainConfig]]:
    """Make a function that builds configurations of runs whose journals are in a folder."""

    def make(journal_folder: Path) -> Callable[..., PretrainConfig]:
        return functools.partial(build, journal_folder)

    def build(
        journal_folder: Path,
        run: str,
        *,
        train: dict[str, Any] | None = None,
        workers: dict[str, int] | None = None,
        optimizer: dict[str, float] | None = None,
    ) -> PretrainConfig:
        return PretrainConfig(
            store=str(store),
            run=run,
            corpus="cells",
            model=ShapeConfig(width=16, num_heads=2, feedforward_width=16, num_layers=2, dropout=0.0),
            tokenizer=TOKENS,
            train=TrainConfig(**{"num_steps": 6, "cells_per_step": 16, "checkpoint_every": 3} | (train or {})),
            # A large epsilon: the gradient of attention's key bias is only rounding, which Adam would magnify.
            optimizer=OptimizerConfig(
                **{"learning_rate": 1e-2, "warmup_steps": 2, "epsilon": 1e-3} | (optimizer or {})
            ),
            workers=WorkersConfig(**workers or {}),
            tracking=TrackingConfig(uri="http://127.0.0.1:9", journal_folder=str(journal_folder)),
        )

    return make


@pytest.fixture(scope="session")
def stream(store: Path) -> CorpusStream:
    """The corpus in the order that ``pretrain_config`` trains on."""
    options = StreamOptions(TOKENS, seed=42, cells_per_step=16, style="generative", ratios=(0.25, 0.5, 0.75))
    return open_stream(str(store), "cells", options)
