"""A tiny bundle and AnnData of real gene names for the tests of the Python face."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cytoray.api import scGPT, scGPTConfig
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

MakeAnnData = Callable[..., anndata.AnnData]
ENSEMBL = {"CD3D": "ENSG00000167286", "MS4A1": "ENSG00000156738", "LYZ": "ENSG00000090382", "NKG7": "ENSG00000105374"}
GENES = (
    *ENSEMBL, "CD14", "CD8A", "GNLY", "CST3", "FCER1A", "PPBP", "IL7R", "CCR7", "S100A4", "FCGR3A", "MS4A7", "CD79A",
    "CD79B", "LST1", "TYROBP", "FTL", "FTH1", "ACTB", "B2M", "MALAT1", "TMSB4X", "RPS27", "RPL13", "GAPDH", "CD4",
    "CD19",
)  # fmt: skip


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved bundle of width 16 whose weights are jittered, so that embeddings differ."""
    vocabulary = GeneVocabulary(sorted(GENES))
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=4, feedforward_width=24, num_layers=2, dropout=0.0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ScGPT(shape, pad_id=vocabulary.pad_id).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("model") / "bundle"
    save_bundle(ModelBundle(model, vocabulary, TokenizerConfig(max_length=20, seed=5)), folder)
    return folder


@pytest.fixture
def face(bundle_folder: Path) -> scGPT:
    """The face of the tiny bundle."""
    return scGPT(scGPTConfig(model=bundle_folder))


@pytest.fixture
def make_adata() -> MakeAnnData:
    """Make an AnnData of random counts: cells c0, c1, …, each with at least a few genes."""

    def make(num_cells: int = 30, *, genes: tuple[str, ...] = GENES, seed: int = 0, **changes: Any) -> anndata.AnnData:
        rng = np.random.default_rng(seed)
        counts = rng.poisson(rng.gamma(0.8, 2.0, len(genes)), (num_cells, len(genes))).astype(np.float32)
        counts[:, 0] += 1
        obs = pd.DataFrame(index=[f"c{number}" for number in range(num_cells)])
        obs["kind"] = pd.Categorical(["ab"[number % 2] for number in range(num_cells)])
        matrix = changes.pop("X", sparse.csr_matrix(counts))
        return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=list(genes)), **changes)

    return make
