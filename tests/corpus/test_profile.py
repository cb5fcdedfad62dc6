# C cells

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoray.corpus.checking.checks import RowChecks, check_rows, map_source_genes, profile_cells
from cytoray.corpus.checking.profile import (
    LABEL_VALUES,
    NUM_DEPTH_BINS,
    OTHER,
    SourceProfile,
    count_labels,
    describing_columns,
    histogram_median,
    log2_histogram,
    merge_profiles,
)
from cytoray.corpus.config import CheckConfig, SourceConfig
from cytoray.corpus.readers.opening import open_source

CHECKS = CheckConfig(min_genes=90)


def profiles(path: str, vocabulary, spans: list[tuple[int, int]]) -> list[SourceProfile]:
    with open_source(SourceConfig(uri=path)) as reader:
        mapping = map_source_genes(reader, vocabulary, CHECKS)
        return [check_rows(reader, mapping, RowChecks(CHECKS), start=a, stop=b).profile for a, b in spans]


@pytest.fixture
def profiled(plant, build_adata, save, tmp_path, vocabulary):
    """A file of 300 cells, some of them dropped, one gene unknown and one doubled; its profile; and what is in it."""
    planted = plant(3)
    names = [*planted.genes[:298], planted.genes[0], "probe"]
    adata = build_adata(planted, matrix=sparse.csr_matrix(planted.counts_CG), var_names=names)
    adata.obs["tissue"] = "blood"
    path = save(adata, tmp_path / "a.h5ad")
    (profile,) = profiles(path, vocabulary, [(0, 300)])
    return path, profile, planted, names


def test_counters_are_those_of_the_kept_cells(profiled, vocabulary):
    _, profile, planted, names = profiled
    known = [name in vocabulary.index for name in names]
    merged = planted.counts_CG[:, :298].copy()
    merged[:, 0] += planted.counts_CG[:, 298]
    genes = (merged > 0).sum(axis=1)
    kept = genes >= CHECKS.min_genes
    assert 0 < kept.sum() < 300
    assert all(known[:299])
    assert (profile.num_read, profile.num_kept) == (300, kept.sum())
    assert profile.dropped == {"too_few_genes": int((~kept).sum())}
    assert profile.depth.tolist() == log2_histogram(planted.counts_CG.sum(axis=1)[kept], NUM_DEPTH_BINS).tolist()
    assert profile.genes_per_cell.sum() == kept.sum()
    assert histogram_median(profile.genes_per_cell) == pytest.approx(np.median(genes[kept]), rel=0.1)
    expected = {vocabulary.index[name]: int(n) for name, n in zip(names, (merged[kept] > 0).sum(axis=0), strict=False)}
    assert dict(enumerate(profile.gene_cells.tolist())).items() >= expected.items()
    assert profile.num_detected == sum(count > 0 for count in expected.values())
    best = max(expected, key=lambda gene: (expected[gene], -gene))
    assert profile.top_genes(3)[0] == (best, expected[best])
    types = Counter(kind for kind, good in zip(planted.types, kept, strict=True) if good)
    assert profile.labels == {"cell_type": types, "tissue": {"blood": kept.sum()}}


def test_genes_are_told_with_examples(profiled):
    _, profile, _, names = profiled
    genes = profile.genes
    assert (genes.num_genes, genes.num_matched, genes.unknown) == (300, 299, ("probe",))
    assert genes.duplicates == {names[0]: (names[0], names[0])}
    assert genes.share == pytest.approx(299 / 300)
    assert (genes.species, genes.id_type) == ("human", "symbol")
    assert {"unknown_genes", "duplicate_gene"} == profile.findings.keys()


def test_the_bins_are_those_of_a_sample_drawn_by_cell_id(profiled):
    _, profile, _, _ = profiled
    assert 0 < profile.num_binned < 60  # a sixteenth of the kept cells
    assert profile.bins[0] == 0
    assert profile.bins.sum() > 0


def test_parts_merge_to_the_whole_in_any_order(profiled, vocabulary):
    path, whole, _, _ = profiled
    parts = profiles(path, vocabulary, [(0, 10), (10, 11), (11, 280), (280, 300)])
    assert merge_profiles(parts).to_json() == whole.to_json()
    assert merge_profiles(parts[::-1]).to_json() == whole.to_json()
    assert merge_profiles([]).to_json() == SourceProfile().to_json()
    assert merge_profiles([SourceProfile(), whole]).to_json() == whole.to_json()


def test_a_profile_survives_json_and_is_small(profiled):
    _, profile, _, _ = profiled
    text = json.dumps(profile.to_json())
    again = SourceProfile.from_json(json.loads(text))
    assert again.to_json() == profile.to_json()
    assert again.merge(profile).num_read == 600
    assert again.genes == profile.genes
    assert len(text) < 20_000


def test_the_largest_profile_stays_below_200_kb():
    rng = np.random.default_rng(0)
    labels = {f"column {n}": {f"a fairly long label {i}": i + 1 for i in range(1000)} for n in range(24)}
    profile = SourceProfile(gene_cells=rng.negative_binomial(0.3, 1e-4, 60_000), labels=labels)
    text = json.dumps(profile.to_json())
    assert len(text) < 200_000
    kept = SourceProfile.from_json(json.loads(text)).labels["column 0"]
    assert len(kept) == LABEL_VALUES + 1
    assert sum(kept.values()) == sum(range(1, 1001))
    assert kept[OTHER] == sum(range(1, 901))


def test_copies_leave_the_counters_with_the_cells(profiled, vocabulary):
    path, profile, _, _ = profiled
    with open_source(SourceConfig(uri=path)) as reader:
        mapping = map_source_genes(reader, vocabulary, CHECKS)
        kept = check_rows(reader, mapping, RowChecks(CHECKS), start=0, stop=300).rows
        copies = profile_cells(reader, mapping, RowChecks(CHECKS), kept[5:40])
        first = profile_cells(reader, mapping, RowChecks(CHECKS), kept[:5])
        last = profile_cells(reader, mapping, RowChecks(CHECKS), kept[40:])
    fewer = profile.without(copies)
    assert fewer.num_kept == profile.num_kept - 35
    assert fewer.dropped == {"duplicate_cell": 35, **profile.dropped}
    expected = first.merge(last).to_json()
    for name in ("num_kept", "depth", "genes_per_cell", "bins", "num_binned", "gene_cells", "labels", "sum_values"):
        assert fewer.to_json()[name] == expected[name]
    assert profile.without(SourceProfile()) is profile


def test_sources_with_different_genes_share_no_overlap(profiled):
    _, profile, _, _ = profiled
    other = SourceProfile.from_json({**profile.to_json(), "genes": {**vars(profile.genes), "num_genes": 7}})
    assert profile.merge(other).genes is None


@pytest.mark.parametrize("values", [[1, 1, 2], [5, 70, 900, 12_345], [100] * 7, [1e-3, 0.2], [1]])
def test_the_median_of_a_histogram(values: list[float]):
    found = histogram_median(log2_histogram(np.array(values), NUM_DEPTH_BINS))
    lower = sorted(values)[(len(values) - 1) // 2]
    assert found == pytest.approx(max(lower, 1), rel=0.1)
    assert histogram_median(np.zeros(4, np.int64)) == 0


def test_columns_that_describe_groups_of_cells():
    frame = pd.DataFrame(
        {
            "tissue": "blood",
            "type": pd.Categorical(["a", "b"] * 50),
            "primary": [True, False] * 50,
            "barcode": [f"b{i}" for i in range(100)],
            "wells": pd.Categorical([f"b{i}" for i in range(100)]),
            "depth": np.arange(100),
            "donor": ["d1", None] * 50,
        }
    )
    assert describing_columns(frame) == ("tissue", "type", "primary", "wells", "donor")
    counted = count_labels(frame, ["type", "primary", "donor"])
    assert counted == {"type": {"a": 50, "b": 50}, "primary": {"True": 50, "False": 50}, "donor": {"d1": 50}}
