"""Tiny bundles that differ by seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking import TrackingConfig


@pytest.fixture
def tracking(mlflow_uri, tmp_path) -> TrackingConfig:
    """A store of its own for one test; no server needed."""
    return TrackingConfig(uri=mlflow_uri, journal_folder=str(tmp_path / "runs"))


@pytest.fixture
def make_bundle(tmp_path) -> Callable[[int], Path]:
    """Save a tiny bundle; another seed gives another digest."""

    def make(seed: int) -> Path:
        vocabulary = GeneVocabulary([f"GENE{n}" for n in range(20)] + ["<pad>", "<cls>", "<eoc>"])
        shape = ModelConfig(
            vocabulary_size=vocabulary.size, width=8, num_heads=2, feedforward_width=8, num_layers=1, num_labels=2
        )
        torch.manual_seed(seed)
        model = ScGPT(shape, pad_id=vocabulary.pad_id)
        bundle = ModelBundle(model, vocabulary, TokenizerConfig(), ("T cell", "B cell"), {"trained_by": "test"})
        folder = tmp_path / f"bundle-{seed}"
        save_bundle(bundle, folder)
        return folder

    return make
