"""Soft bins are positions among the bins, and a depth token is the logarithm of the cell's total."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError

from cytoray.tokens.cells import SparseCells
from cytoray.tokens.inference import InferenceConfig
from cytoray.tokens.packed import pack
from cytoray.tokens.tokenizer import CellTokenizer, TokenBuffers, TokenizerConfig, TokenPlan
from cytoray.tokens.vocabulary import GeneVocabulary

SOFT = TokenizerConfig(max_length=401, values="soft")
DEEP = TokenizerConfig(max_length=401, depth_token=1e4)


def test_a_soft_bin_is_the_position_of_the_value_among_the_edges(
    panel: GeneVocabulary, random_cells: Callable[..., SparseCells]
) -> None:
    cells = random_cells(1)
    tokens = CellTokenizer(panel, SOFT)(cells, epoch=3)
    for row in range(cells.num_cells):
        values = cells.values[cells.indptr[row] : cells.indptr[row + 1]]
        found = tokens.values[tokens.indptr[row] + 1 : tokens.indptr[row + 1]]
        fine = np.quantile(values, np.linspace(0, 1, 49 * 64 + 1))
        position = (np.searchsorted(fine, values, "left") + np.searchsorted(fine, values, "right") - 1) / 2
        np.testing.assert_allclose(found, 1 + position / 64, atol=0.5 / 64)  # NumPy's rounding at an edge
        assert np.array_equal(np.unique(found).argsort(), np.unique(values).argsort())


def test_soft_bins_are_close_to_the_mean_of_the_drawn_ones_and_need_no_draws(
    panel: GeneVocabulary, random_cells: Callable[..., SparseCells]
) -> None:
    cells = random_cells(2)
    hard = CellTokenizer(panel, TokenizerConfig(max_length=401))
    drawn = np.mean([hard(cells, epoch=epoch).values for epoch in range(200)], axis=0)
    soft = CellTokenizer(panel, SOFT)
    first, again = (soft(cells, epoch=epoch) for epoch in (0, 1))
    assert np.array_equal(first.values, again.values)
    assert np.abs(first.values - drawn).max() < 4  # five standard errors of the mean of 200 draws among 40 bins
    assert np.abs(first.values - drawn).mean() < 0.75
    by_gene = CellTokenizer(panel, SOFT, InferenceConfig())(cells)
    assert np.array_equal(by_gene.values, first.values)
    assert np.array_equal(by_gene.gene_ids, first.gene_ids)


def test_the_depth_token_follows_cls_and_is_the_logarithm_of_the_total(
    panel: GeneVocabulary, build_cells: Callable[..., SparseCells]
) -> None:
    cells = build_cells([[60, 40], [300, 700], [70_000, 30_000], []])
    tokens = CellTokenizer(panel, DEEP)(cells)
    starts = tokens.indptr[:-1]
    assert tokens.lengths.tolist() == [4, 4, 4, 2]
    assert (tokens.gene_ids[starts] == panel.cls_id).all()
    assert (tokens.gene_ids[starts + 1] == panel.eoc_id).all()
    np.testing.assert_allclose(tokens.values[starts + 1], [0.5, 0.75, 1.25, 0.0], rtol=1e-6)
    fractions = build_cells([[2.5, 7.5]])
    assert CellTokenizer(panel, DEEP)(fractions).values[1] == pytest.approx(0.25)


def test_tokens_with_a_depth_token_are_otherwise_those_without(
    panel: GeneVocabulary, random_cells: Callable[..., SparseCells]
) -> None:
    cells = random_cells(4)
    for style in ("plain", "masked", "generative"):
        deep = _fill(CellTokenizer(panel, DEEP.model_copy(update={"max_length": 102})), cells, style)
        plain = _fill(CellTokenizer(panel, TokenizerConfig(max_length=101)), cells, style)
        for (name, one), other in zip(deep.items(), plain.values(), strict=True):
            rest = one if name.startswith("unknown") else np.delete(one, 1, axis=1)
            assert np.array_equal(rest, other), (style, name)


def _fill(tokenizer: CellTokenizer, cells: SparseCells, style: str) -> dict[str, np.ndarray]:
    """Padded tokens of all cells."""
    packed, num = tokenizer.pack(cells), cells.num_cells
    width, ratios = tokenizer.max_length, np.full(num, 0.5)
    unknown = 60 if style == "generative" else None
    plan = TokenPlan.padded(num, width, unknown_width=unknown, ratios=None if style == "plain" else ratios)
    sizes = {"gene_ids": width, "values": width}
    if style == "masked":
        sizes["masked"] = width
    if style == "generative":
        sizes |= {"unknown_gene_ids": 60, "unknown_values": 60}
    kinds = {name: np.int32 if "ids" in name else np.float32 for name in sizes}
    buffers = {name: np.empty(num * size, kinds[name]) for name, size in sizes.items()}
    tokenizer.fill(packed, np.arange(num), np.zeros(num, np.int64), plan, TokenBuffers(**buffers))
    return {name: array.reshape(num, -1) for name, array in buffers.items()}


def test_stored_bins_are_not_used_for_soft_ones(
    panel: GeneVocabulary, random_cells: Callable[..., SparseCells]
) -> None:
    from cytoray.tokens.packed import with_bins

    cells, tokenizer = random_cells(6), CellTokenizer(panel, SOFT)
    stored = with_bins(pack(cells), np.ones(len(cells.values), np.int16))
    assert np.array_equal(tokenizer(stored, epoch=0).values, tokenizer(cells, epoch=0).values)


def test_settings_that_do_not_fit_are_refused_and_defaults_leave_no_trace() -> None:
    with pytest.raises(ValidationError, match="n_bins up to"):
        TokenizerConfig(values="soft", n_bins=4000)
    with pytest.raises(ValidationError, match="no room"):
        TokenizerConfig(depth_token=1e5, max_length=2)
    assert not {"values", "depth_token"} & TokenizerConfig().model_dump().keys(), "digests of bundles stay"
    assert SOFT.model_dump()["values"] == "soft"
