"""The fused pass that makes minibatches: sampling, binning, padding, masking and splitting, against the definition."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_tokens import choose, draw
from scipy import stats

from cytoray.tokens.packed import PackedCells, pack, with_bins, with_table
from cytoray.tokens.tokenizer import CellTokenizer, TokenBuffers, TokenizerConfig, TokenPlan
from cytoray.tokens.vocabulary import GeneVocabulary

SEEDS = st.integers(0, 2**32)
RATIOS = st.one_of(st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.75, 1.0]), st.floats(0, 1))
OUTPUTS = [("uint16", "int8"), ("int32", "int16"), ("int64", "float32")]
PAD, CLS = 400, 401


@pytest.fixture(scope="session")
def tokenizer(panel) -> CellTokenizer:
    assert (panel.pad_id, panel.cls_id) == (PAD, CLS)
    return CellTokenizer(panel, TokenizerConfig(max_length=121, cls_value=-3.0, seed=9))


def empty(size: int, kinds: tuple[str, str], *, masked: bool = False, unknown: int | None = None) -> TokenBuffers:
    """Buffers full of what must be overwritten."""
    ids, values = kinds
    return TokenBuffers(
        np.full(size, 77, ids),
        np.full(size, 77, values),
        np.full(size, 77, values) if masked else None,
        None if unknown is None else np.full(unknown, 77, ids),
        None if unknown is None else np.full(unknown, 77, values),
    )


def expected_cell(packed_cell, epoch: int, ratio: float) -> dict[str, list[tuple[int, int]]]:
    """(gene, value) pairs of one cell in every style, by the definition; its cells has one row."""
    key = (9, epoch, int(packed_cell.cell_ids[0]))
    drawn = draw(packed_cell.gene_ids, packed_cell.values, key, n_bins=51, max_genes=120)
    genes = packed_cell.gene_ids[drawn.kept].tolist()
    bins = drawn.bins[drawn.kept].tolist()
    numbers = [drawn.words[place] >> 44 for place in drawn.kept]
    split = set(choose(numbers, int(len(genes) * ratio)))
    plain = list(zip(genes, bins, strict=True))
    return {
        "plain": plain,
        "masked": [(gene, -1 if n < ratio * 2**20 else value) for (gene, value), n in zip(plain, numbers, strict=True)],
        "exactly": [(gene, -1 if place in split else value) for place, (gene, value) in enumerate(plain)],
        "known": [pair for place, pair in enumerate(plain) if place not in split],
        "unknown": [pair for place, pair in enumerate(plain) if place in split],
    }


def row_of(gene_ids: np.ndarray, values: np.ndarray) -> list[tuple[int, int]]:
    """(gene, value) pairs of a row of known tokens: <cls> first, padding last, neither returned."""
    assert (gene_ids[0], values[0]) == (CLS, -3)
    return genes_of(gene_ids[1:], values[1:])


def genes_of(gene_ids: np.ndarray, values: np.ndarray) -> list[tuple[int, int]]:
    size = int((gene_ids != PAD).sum())
    assert np.all(gene_ids[size:] == PAD)
    assert np.all(values[size:] == -2)
    return list(zip(gene_ids[:size].tolist(), values[:size].astype(int).tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, ratio=RATIOS, kinds=st.sampled_from(OUTPUTS), counts=st.booleans(), exact=st.booleans())
def test_masked_rows_are_those_of_the_definition(tokenizer, random_cells, seed, ratio, kinds, counts, exact):
    cells = random_cells(seed)
    rows, epochs = np.random.default_rng(seed).integers(0, 12, 9), np.arange(9) % 3
    plan = replace(TokenPlan.padded(9, 130, ratios=np.full(9, ratio)), exact=exact)
    buffers = empty(9 * 130, kinds, masked=True)
    tokenizer.fill(pack(cells, counts=counts), rows, epochs, plan, buffers)
    gene_ids, values, masked = (a.reshape(9, 130) for a in (buffers.gene_ids, buffers.values, buffers.masked))
    for place, (row, epoch) in enumerate(zip(rows, epochs, strict=True)):
        expected = expected_cell(cells.take(np.array([row])), int(epoch), ratio)
        assert row_of(gene_ids[place], values[place]) == expected["plain"]
        assert row_of(gene_ids[place], masked[place]) == expected["exactly" if exact else "masked"]


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, ratio=RATIOS, kinds=st.sampled_from(OUTPUTS), counts=st.booleans())
def test_split_rows_are_those_of_the_definition(tokenizer, random_cells, seed, ratio, kinds, counts):
    cells = random_cells(seed)
    packed = pack(cells, counts=counts)
    ratios = np.full(12, ratio)
    known, unknown = tokenizer.num_tokens(packed.num_genes_per_cell, ratios)
    longest = int(np.minimum(packed.num_genes_per_cell, 120).max()) + 1
    assert unknown.max() == int((longest - 1) * ratio)  # G of the published collator, and P below
    assert known.max() == longest - int((longest - 1) * ratio)
    width, unknown_width = int(known.max()) + 3, int(unknown.max()) + 2
    buffers = empty(12 * width, kinds, unknown=12 * unknown_width)
    plan = TokenPlan.padded(12, width, unknown_width=unknown_width, ratios=ratios)
    tokenizer.fill(packed, np.arange(12), np.full(12, 4), plan, buffers)
    known_rows = [array.reshape(12, width) for array in (buffers.gene_ids, buffers.values)]
    unknown_rows = [array.reshape(12, unknown_width) for array in (buffers.unknown_gene_ids, buffers.unknown_values)]
    for row in range(12):
        expected = expected_cell(cells.take(np.array([row])), 4, ratio)
        assert row_of(*(array[row] for array in known_rows)) == expected["known"]
        assert genes_of(*(array[row] for array in unknown_rows)) == expected["unknown"]
        assert (len(expected["known"]) + 1, len(expected["unknown"])) == (known[row], unknown[row])


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, kinds=st.sampled_from(OUTPUTS))
def test_packed_rows_lie_end_to_end(tokenizer, random_cells, seed: int, kinds: tuple[str, str]):
    cells = random_cells(seed)
    packed, ratios = pack(cells), np.linspace(0, 1, 12)
    known, unknown = tokenizer.num_tokens(packed.num_genes_per_cell, ratios)
    buffers = empty(int(known.sum()), kinds, unknown=int(unknown.sum()))
    tokenizer.fill(packed, np.arange(12), np.zeros(12), TokenPlan.packed(known, unknown, ratios=ratios), buffers)
    ends, unknown_ends = np.cumsum(known), np.cumsum(unknown)
    for row in range(12):
        expected = expected_cell(cells.take(np.array([row])), 0, ratios[row])
        part = slice(ends[row] - known[row], ends[row])
        assert row_of(buffers.gene_ids[part], buffers.values[part]) == expected["known"]
        part = slice(unknown_ends[row] - unknown[row], unknown_ends[row])
        assert genes_of(buffers.unknown_gene_ids[part], buffers.unknown_values[part]) == expected["unknown"]


def filled(tokenizer: CellTokenizer, packed: PackedCells, *, ratio: float = 0.4, epoch: int = 0) -> TokenBuffers:
    """Masked rows of all cells, 130 wide."""
    size = packed.num_cells
    buffers = empty(size * 130, ("uint16", "int8"), masked=True)
    plan = TokenPlan.padded(size, 130, ratios=np.full(size, ratio))
    tokenizer.fill(packed, np.arange(size), np.full(size, epoch), plan, buffers)
    return buffers


@pytest.fixture(scope="session")
def equal_cells(build_cells) -> PackedCells:
    """4,000 cells of the same 200 genes."""
    return pack(build_cells([np.ones(200)] * 4000))


def test_every_gene_is_masked_by_chance_and_cls_and_padding_never(tokenizer, equal_cells):
    buffers = filled(tokenizer, equal_cells, ratio=0.4)
    gene_ids, masked = buffers.gene_ids.reshape(4000, 130), buffers.masked.reshape(4000, 130)
    assert np.all(masked[:, 0] == -3)
    assert np.all(masked[gene_ids == PAD] == -2)
    hidden = masked == -1
    per_cell = hidden.sum(1)
    assert abs(hidden.sum() / (4000 * 120) - 0.4) < 5 * np.sqrt(0.24 / (4000 * 120))
    assert 0.8 < per_cell.var() / (120 * 0.24) < 1.2  # independent draws: binomial, not a fixed number a cell
    by_gene = np.bincount(gene_ids[hidden], minlength=200)[:200] / np.bincount(gene_ids.ravel(), minlength=402)[:200]
    assert np.all(abs(by_gene - 0.4) < 5 * np.sqrt(0.24 / 2300))


def test_samples_splits_and_ties_are_independent_and_even(tokenizer, equal_cells):
    buffers = empty(4000 * 91, ("int32", "int16"), unknown=4000 * 30)
    plan = TokenPlan.padded(4000, 91, unknown_width=30, ratios=np.full(4000, 0.25))
    tokenizer.fill(equal_cells, np.arange(4000), np.zeros(4000), plan, buffers)
    known = np.bincount(buffers.gene_ids, minlength=402)[:200]
    unknown = np.bincount(buffers.unknown_gene_ids, minlength=402)[:200]
    assert (known.sum(), unknown.sum()) == (4000 * 90, 4000 * 30)
    for counts, share in ((known + unknown, 120 / 200), (unknown, 30 / 200)):
        # Without replacement the counts vary less than a multinomial's, by the share left out.
        statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum() / (1 - share)
        assert stats.chi2(199).sf(statistic) > 1e-4
    for values in (buffers.values[buffers.values > 0], buffers.unknown_values):
        assert stats.chisquare(np.bincount(values, minlength=51)[1:]).pvalue > 1e-4
    together = np.array([np.bincount(row, minlength=200) for row in buffers.unknown_gene_ids.reshape(4000, 30)])
    pairs = np.corrcoef(together.T)[np.triu_indices(200, 1)]
    assert abs(pairs.mean() + 1 / 199) < 0.001  # what drawing without replacement gives
    assert abs(pairs).max() < 6 / np.sqrt(4000)


def test_every_epoch_and_seed_draws_anew(tokenizer, equal_cells):
    other_seed = CellTokenizer(tokenizer.vocabulary, replace_config(tokenizer.config, seed=10))
    first, again = filled(tokenizer, equal_cells), filled(tokenizer, equal_cells)
    assert np.array_equal(first.masked, again.masked)
    for other in (filled(tokenizer, equal_cells, epoch=1), filled(other_seed, equal_cells)):
        hidden, other_hidden = (buffers.masked.reshape(-1, 130)[:, 1:121] == -1 for buffers in (first, other))
        assert abs(np.mean(hidden & other_hidden) - np.mean(hidden) * np.mean(other_hidden)) < 0.01


def replace_config(config: TokenizerConfig, **changes: object) -> TokenizerConfig:
    return TokenizerConfig(**{**config.model_dump(), **changes})


def test_stored_bins_take_the_place_of_binning(tokenizer, random_cells):
    cells = random_cells(3)
    buffers = filled(tokenizer, with_bins(pack(cells), cells.gene_ids % 50 + 1))
    real = buffers.gene_ids < 400
    assert np.array_equal(buffers.values[real], buffers.gene_ids[real] % 50 + 1)


def test_streams_of_places_in_a_table_give_the_same_tokens(tokenizer, random_cells):
    packed = pack(random_cells(3, num_genes=390))
    assert with_table(packed).table is not None
    ours, expected = filled(tokenizer, with_table(packed)), filled(tokenizer, packed)
    for name in ("gene_ids", "values", "masked"):
        assert np.array_equal(getattr(ours, name), getattr(expected, name))


def test_ids_beyond_16_bits_take_32(random_cells, build_cells):
    wide = GeneVocabulary([f"GENE{number}" for number in range(70_000)])
    tokenizer = CellTokenizer(wide, TokenizerConfig())
    assert (tokenizer.id_dtype, tokenizer.value_dtype) == (np.int32, np.int8)
    packed = pack(build_cells([[1, 2, 3]], gene_ids=[[5, 65_535, 69_999]]))
    for kind in ("int32", "int64"):
        buffers = empty(5, (kind, "int8"))
        tokenizer.fill(packed, np.arange(1), np.zeros(1), TokenPlan.padded(1, 5), buffers)
        assert buffers.gene_ids.tolist() == [70_001, 5, 65_535, 69_999, 70_000]
    with pytest.raises(AssertionError, match="ids do not fit"):
        tokenizer.fill(packed, np.arange(1), np.zeros(1), TokenPlan.padded(1, 5), empty(5, ("uint16", "int8")))


def test_the_narrowest_types_hold_what_the_settings_need(census):
    kinds = {
        (): ("uint16", "int8"),
        (("n_bins", 128),): ("uint16", "int8"),
        (("n_bins", 129),): ("uint16", "int16"),
        (("pad_value", -200.0),): ("uint16", "int16"),
        (("mask_value", -0.5),): ("uint16", "float32"),
    }
    for changes, expected in kinds.items():
        tokenizer = CellTokenizer(census, TokenizerConfig(**dict(changes)))
        assert (tokenizer.id_dtype, tokenizer.value_dtype) == expected


@pytest.mark.parametrize(
    "mistake", ["narrow rows", "short buffers", "negative start", "no masked", "ratio", "bins", "types"]
)
def test_what_would_write_outside_is_refused(tokenizer, equal_cells, mistake: str):
    packed, rows = equal_cells, np.arange(3)
    ratios = np.full(3, 1.5 if mistake == "ratio" else 0.5)
    plan = TokenPlan.padded(3, 120 if mistake == "narrow rows" else 121, ratios=ratios)
    if mistake == "negative start":
        plan = TokenPlan(plan.starts - 1, plan.widths, ratios=ratios)
    size = 3 * 121 - 1 if mistake == "short buffers" else 3 * 121
    buffers = empty(size, ("uint16", "int8"), masked=mistake != "no masked")
    if mistake == "bins":
        tokenizer = CellTokenizer(tokenizer.vocabulary, replace_config(tokenizer.config, n_bins=300))
    if mistake == "types":
        buffers = replace(buffers, masked=buffers.masked.astype(np.int16))
    with pytest.raises(AssertionError):
        tokenizer.fill(packed, rows, np.zeros(3), plan, buffers)


def test_damaged_streams_are_noticed(tokenizer, random_cells):
    packed = pack(random_cells(5))
    damaged = packed.genes.copy()
    damaged[packed.gene_starts[4]] = 255  # one gene fewer
    with pytest.raises(AssertionError, match="cell 4"):
        filled(tokenizer, replace(packed, genes=damaged))


def test_threads_and_forked_processes_get_the_same_tokens(tokenizer, equal_cells):
    expected = filled(tokenizer, equal_cells).masked
    with ThreadPoolExecutor(4) as pool:
        for buffers in pool.map(lambda _: filled(tokenizer, equal_cells), range(8)):
            assert np.array_equal(buffers.masked, expected)
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(
        target=lambda: queue.put(np.array_equal(filled(tokenizer, equal_cells).masked, expected))
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get()


def test_no_cells_and_empty_cells_are_fine(tokenizer, build_cells):
    packed = pack(build_cells([[], [5.0], []]))
    buffers = empty(9, ("uint16", "int8"), masked=True)
    tokenizer.fill(packed, np.arange(3), np.zeros(3), TokenPlan.padded(3, 3, ratios=np.zeros(3)), buffers)
    assert buffers.gene_ids.tolist() == [CLS, PAD, PAD, CLS, 0, PAD, CLS, PAD, PAD]
    assert buffers.masked.tolist() == buffers.values.tolist()
    tokenizer.fill(packed, np.arange(0), np.zeros(0), TokenPlan.padded(0, 3), empty(0, ("uint16", "int8")))
