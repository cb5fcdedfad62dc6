"""Tiny models, minibatches and bundles for the tests of the model room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cytoray.model.bundle import ModelBundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.collator import GenerativeMinibatch, Minibatch
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_GENES, PAD, CLS = 60, 60, 61


@pytest.fixture
def config() -> ModelConfig:
    """A model of 63 tokens, 3 layers and no dropout, with feed-forward and width different on purpose."""
    return ModelConfig(vocabulary_size=63, width=16, num_heads=4, feedforward_width=24, num_layers=3, dropout=0.0)


@pytest.fixture
def build_model(config: ModelConfig) -> Callable[..., ScGPT]:
    """Build a seeded model whose norms and biases are jittered, so that a swapped one shows."""

    def build(*, dtype: torch.dtype = torch.float32, **changes: object) -> ScGPT:
        torch.manual_seed(0)
        model = ScGPT(config.model_copy(update=changes), pad_id=PAD)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model.to(dtype).eval()

    return build


@pytest.fixture
def make_batch() -> Callable[..., Minibatch]:
    """Make a padded minibatch of cells with the given numbers of genes, <cls> first."""

    def make(lengths: list[int], *, seed: int = 0, width: int | None = None) -> Minibatch:
        rng = np.random.default_rng(seed)
        shape = (len(lengths), (width or max(lengths)) + 1)
        genes, values = np.full(shape, PAD, np.int64), np.full(shape, -2.0, np.float32)
        for row, length in enumerate(lengths):
            genes[row, : length + 1] = [CLS, *rng.choice(NUM_GENES, length, replace=False)]
            values[row, 1 : length + 1] = rng.integers(1, 51, length)
        ids = np.arange(len(lengths), dtype=np.uint64)
        gene_ids = torch.from_numpy(genes)
        return Minibatch(gene_ids=gene_ids, values=torch.from_numpy(values), padding_mask=gene_ids == PAD, cell_ids=ids)

    return make


@pytest.fixture
def make_generative(make_batch: Callable[..., Minibatch]) -> Callable[..., GenerativeMinibatch]:
    """Make a generative minibatch with the given numbers of known and of unknown genes."""

    def make(known: list[int], unknown: list[int]) -> GenerativeMinibatch:
        hidden = make_batch(unknown, seed=1)
        return GenerativeMinibatch(
            known=make_batch(known),
            unknown_gene_ids=hidden.gene_ids[:, 1:],
            unknown_targets=hidden.values[:, 1:],
            unknown_padding_mask=hidden.padding_mask[:, 1:],
        )

    return make


@pytest.fixture
def vocabulary() -> GeneVocabulary:
    """60 genes and the three special tokens."""
    return GeneVocabulary([*(f"GENE{number:02d}" for number in range(NUM_GENES)), "<pad>", "<cls>", "<eoc>"])


@pytest.fixture
def bundle(build_model: Callable[..., ScGPT], vocabulary: GeneVocabulary) -> ModelBundle:
    """A bundle with a classifier of three labels."""
    return ModelBundle(
        build_model(num_labels=3),
        vocabulary,
        TokenizerConfig(max_length=24),
        ("B", "T", "NK"),
        {"run": "a run", "corpus": "a digest"},
    )


@pytest.fixture
def make_cells() -> Callable[..., SparseCells]:
    """Make cells with the given numbers of expressed genes and distinct values within a cell."""

    def make(lengths: list[int], *, seed: int = 0) -> SparseCells:
        rng = np.random.default_rng(seed)
        genes = [np.sort(rng.choice(NUM_GENES, length, replace=False)) for length in lengths]
        values = [rng.permutation(length) + 1.0 for length in lengths]
        return SparseCells(
            np.concatenate([np.empty(0), *genes]).astype(np.int32),
            np.concatenate([np.empty(0), *values]).astype(np.float32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.arange(len(lengths), dtype=np.uint64) + 1000,
        )

    return make
