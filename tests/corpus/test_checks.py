from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from cytoray.corpus.checking import checks as checks_module
from cytoray.corpus.checking.checks import (
    CheckedRows,
    RowChecks,
    check_rows,
    corpus_values,
    map_source_genes,
    refuse_unrecoverable,
    split_mask,
)
from cytoray.corpus.checking.profile import SourceProfile
from cytoray.corpus.config import CheckConfig, RuleConfig, SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.keys import content_keys
from cytoray.tokens.packed import unpack
from cytoray.tokens.vocabulary import GeneVocabulary

BAD_ROW = 137


EXPRESSION = CheckConfig(rules=RuleConfig(not_counts="warn"))


def check(
    path: str, *, span: tuple[int, int] = (0, 300), checks: CheckConfig | None = None, keep: str | None = None, **source
) -> CheckedRows:
    checks = checks or CheckConfig()
    with open_source(SourceConfig(uri=path, **source)) as reader:
        mapping = map_source_genes(reader, GeneVocabulary.load_default(), checks)
        options = RowChecks(checks, filter=keep, values=corpus_values([reader.value_kind], checks))
        return check_rows(reader, mapping, options, start=span[0], stop=span[1])


def cells_of(path: str, **options) -> SparseCells:
    return unpack(check(path, **options).cells)


def as_dicts(cells: SparseCells) -> list[dict[int, float]]:
    """Each cell as gene id -> value."""
    ranges = zip(cells.indptr[:-1], cells.indptr[1:], strict=True)
    return [dict(zip(cells.gene_ids[a:b].tolist(), cells.values[a:b].tolist(), strict=True)) for a, b in ranges]


def dense_oracle(vocabulary: GeneVocabulary, counts: np.ndarray, names: Sequence[str]) -> list[dict[int, float]]:
    """Cells by plain loops: a name's own token, doubles summed."""
    cells = []
    for row in counts.tolist():
        cell: dict[int, float] = {}
        for name, value in zip(names, row, strict=True):
            if value and name in vocabulary.index:
                cell[vocabulary.index[name]] = cell.get(vocabulary.index[name], 0) + value
        cells.append(cell)
    return cells


def test_good_counts_pass_unchanged(planted_file, vocabulary):
    path, planted = planted_file
    checked = check(path, span=(20, 120))
    assert as_dicts(unpack(checked.cells)) == dense_oracle(vocabulary, planted.counts_CG[20:120], planted.genes)
    assert checked.rows.tolist() == list(range(20, 120))
    assert (checked.dropped, checked.warned) == ({}, {})
    assert checked.content.tolist() == content_keys(unpack(checked.cells)).tolist()
    assert len(set(checked.cells.cell_ids.tolist())) == 100


def test_ids_of_cells_do_not_depend_on_the_range_or_the_folder(planted_file, tmp_path):
    path, _ = planted_file
    whole = check(path).cells.cell_ids
    assert np.array_equal(check(path, span=(100, 150)).cells.cell_ids, whole[100:150])
    (tmp_path / "elsewhere").mkdir()
    moved = Path(path).rename(tmp_path / "elsewhere" / "planted.h5ad")
    assert np.array_equal(check(str(moved)).cells.cell_ids, whole)
    renamed = moved.rename(tmp_path / "other.h5ad")
    assert not np.isin(check(str(renamed)).cells.cell_ids, whole).any()


@pytest.mark.parametrize(
    ("layout", "column"), [(sparse.csr_matrix, 0), (sparse.csc_matrix, 42), (np.asarray, 42), (np.asarray, 299)]
)
@pytest.mark.parametrize(
    ("value", "shown", "advice"),
    [
        (np.nan, "nan", "Replace or remove"),
        (np.inf, "inf", "Replace or remove"),
        (-np.inf, "-inf", "Replace or remove"),
        (-1.0, "-1", "name the counts"),
        (0.5, "0.5", "name the raw counts"),
    ],
)
def test_a_value_that_is_no_count_is_named_with_its_cell_and_gene(
    layout, column: int, value: float, shown: str, advice: str, plant, build_adata, save, tmp_path
):
    planted = plant(1, num_cells=1200)  # so that the sample by which the file is judged misses the bad row
    values = planted.counts_CG.copy()
    row = 300 + BAD_ROW
    values[row - 1] = 0  # so that a row without entries stands before it
    values[row, column] = value
    path = save(build_adata(planted, matrix=layout(values)), tmp_path / "bad.h5ad")
    assert check(path, span=(0, row)).cells.num_cells == row - 1
    with pytest.raises(CorpusError) as caught:
        check(path, span=(250, 900))
    problem = caught.value.problem
    assert path in problem
    assert f"the first is cell 'cell-{row}' (row {row}), gene {planted.genes[column]!r}, with {shown}" in problem
    assert advice in caught.value.remedy
    assert caught.value.details["cell"] == f"cell-{row}"
    assert caught.value.details["gene"] == planted.genes[column]


def test_scaled_values_are_refused_with_the_way_out(plant, build_adata, save, tmp_path):
    planted = plant(2)
    normal = planted.log_normalised()
    path = save(build_adata(planted, matrix=normal - normal.mean(axis=0)), tmp_path / "scaled.h5ad")
    with pytest.raises(CorpusError, match=r"scaled data.*layers/NAME` or raw.X"):
        check(path)


def test_counts_that_went_through_floats_are_rounded(plant, build_adata, save, tmp_path, vocabulary):
    planted = plant(3)
    noisy = planted.counts_CG + np.random.default_rng(0).uniform(-9e-4, 9e-4, planted.counts_CG.shape)
    noisy[planted.counts_CG == 0] = np.abs(noisy[planted.counts_CG == 0])  # and a trace where there was none
    path = save(build_adata(planted, matrix=noisy.astype(np.float32)), tmp_path / "noisy.h5ad")
    checked = check(path)
    assert as_dicts(unpack(checked.cells)) == dense_oracle(vocabulary, planted.counts_CG, planted.genes)
    assert checked.profile.findings == {
        "near_counts": "the values of X are within 0.001 of integers, and are rounded to them"
    }
    assert checked.profile.num_rounded == np.count_nonzero(noisy.astype(np.float32) != planted.counts_CG)


def test_log_normalised_values_become_the_counts_they_came_from(plant, build_adata, save, tmp_path, vocabulary):
    planted = plant(4)
    values = planted.log_normalised()
    values[9] *= np.random.default_rng(0).uniform(0.8, 1.2, 300)
    path = save(build_adata(planted, matrix=sparse.csr_matrix(values)), tmp_path / "normal.h5ad")
    checked = check(path)
    assert checked.dropped["not_recoverable"] == 1
    assert checked.rows.tolist() == [row for row in range(300) if row != 9]
    expected = dense_oracle(vocabulary, planted.counts_CG, planted.genes)
    assert as_dicts(unpack(checked.cells)) == expected[:9] + expected[10:]
    assert list(checked.profile.findings) == ["recovered"]
    assert checked.profile.depth.sum() == 299


def test_a_range_where_too_few_cells_are_recoverable_is_refused(plant, build_adata, save, tmp_path):
    planted = plant(5, num_cells=3000)
    values = planted.log_normalised()
    values[100:200] *= np.random.default_rng(0).uniform(0.8, 1.2, (100, 300))  # between the sampled rows
    path = save(build_adata(planted, matrix=sparse.csr_matrix(values)), tmp_path / "mixed.h5ad")
    with pytest.raises(CorpusError, match="only 50% of 200 log-normalised cells of X") as caught:
        check(path, span=(100, 300))
    assert "checks.min_recoverable" in caught.value.remedy
    kept = check(path, span=(100, 300), checks=CheckConfig(min_recoverable=0.5))
    assert (kept.cells.num_cells, kept.dropped["not_recoverable"]) == (100, 100)


def test_expression_that_is_no_count_is_kept_as_it_is(plant, build_adata, save, tmp_path, vocabulary):
    planted = plant(6)
    values = (planted.log_normalised() * np.random.default_rng(0).uniform(0.5, 2, 300)).astype(np.float32)
    path = save(build_adata(planted, matrix=sparse.csr_matrix(values)), tmp_path / "smooth.h5ad")
    assert as_dicts(cells_of(path, checks=EXPRESSION)) == dense_oracle(vocabulary, values, planted.genes)


def test_cells_without_enough_genes_are_dropped_and_counted(plant, build_adata, save, tmp_path, vocabulary):
    planted = plant(7)
    counts = planted.counts_CG.copy()
    counts[[3, 250]] = 0
    counts[[10, 20, 30], 1:] = 0
    counts[[10, 20, 30], 0] = 4  # one gene each
    counts[40], counts[40, 299] = 0, 5  # one gene, which the vocabulary does not know
    names = [*planted.genes[:299], "no such gene"]
    path = save(build_adata(planted, matrix=sparse.csr_matrix(counts), var_names=names), tmp_path / "few.h5ad")
    for min_genes, few in ((1, set()), (2, {10, 20, 30})):
        checked = check(path, checks=CheckConfig(min_genes=min_genes))
        kept = [row for row in range(300) if row not in {3, 40, 250, *few}]
        assert checked.rows.tolist() == kept
        # The cell whose only gene is unknown has counts, but no gene of the vocabulary.
        assert checked.dropped == {"empty_cell": 2, "too_few_genes": 1 + len(few)}
        assert as_dicts(unpack(checked.cells)) == dense_oracle(vocabulary, counts[kept], names)


def test_doubled_gene_names_are_summed(plant, build_adata, save, tmp_path, vocabulary):
    planted = plant(8)
    names = list(planted.genes)
    names[10], names[200], names[299] = names[0], names[0], names[1]
    path = save(build_adata(planted, var_names=names), tmp_path / "twice.h5ad")
    cells = cells_of(path)
    assert as_dicts(cells) == dense_oracle(vocabulary, planted.counts_CG, names)
    twice = vocabulary.index[names[0]]
    expected = planted.counts_CG[:, [0, 10, 200]].sum(axis=1)
    assert np.array_equal([cell.get(twice, 0) for cell in as_dicts(cells)], expected)


def test_when_no_gene_matches_ten_of_theirs_and_the_known_kinds_are_shown(plant, build_adata, save, tmp_path):
    planted = plant(9)
    names = [f"probe_{i}" for i in range(300)]
    adata = build_adata(planted, var_names=names)
    adata.var["chip"] = "u133"
    path = save(adata, tmp_path / "probes.h5ad")
    with pytest.raises(CorpusError) as caught:
        check(path)
    assert "columns of var: 'chip'" in caught.value.remedy
    assert f"{path}: 0 of 300 genes are in the vocabulary" in caught.value.problem
    assert ", ".join(names[:10]) in caught.value.problem
    assert names[10] not in caught.value.problem
    for words in ("human gene symbols", "Ensembl ids (ENSG…)", "gene_column"):
        assert words in caught.value.remedy
    adata.var["any name"] = planted.genes
    assert check(save(adata, tmp_path / "named.h5ad")).cells.num_cells == 300


def test_mouse_genes_are_called_mouse(plant, build_adata, save, tmp_path):
    planted = plant(9)
    names = [f"{name.capitalize()}x" for name in planted.genes]
    path = save(build_adata(planted, var_names=names), tmp_path / "mouse.h5ad")
    with pytest.raises(CorpusError) as caught:
        check(path)
    assert "mouse" in caught.value.remedy
    assert "orthologs" in caught.value.remedy


def test_a_few_known_genes_are_not_enough_unless_told_so(plant, build_adata, save, tmp_path):
    planted = plant(9)
    path = save(
        build_adata(planted, var_names=[*planted.genes[:9], *(f"probe_{i}" for i in range(291))]), tmp_path / "a.h5ad"
    )
    with pytest.raises(CorpusError, match="9 of 300 genes"):
        check(path)
    assert check(path, checks=CheckConfig(min_matched_genes=9)).cells.num_cells > 0


def test_ensembl_ids_stand_in_for_unknown_names(plant, build_adata, save, tmp_path, vocabulary):
    planted = plant(9)
    adata = build_adata(planted, var_names=[f"probe_{i}" for i in range(300)])
    adata.var["id"] = ["ENSG00000167286.12", *["nothing"] * 299]
    path = save(adata, tmp_path / "a.h5ad")
    checked = check(path, ensembl_column="id", checks=CheckConfig(min_matched_genes=1))
    expressed = np.flatnonzero(planted.counts_CG[:, 0])
    assert checked.rows.tolist() == expressed.tolist()
    assert as_dicts(unpack(checked.cells)) == [
        {vocabulary.index["CD3D"]: planted.counts_CG[row, 0]} for row in expressed
    ]


def test_the_two_sides_of_the_split_make_up_the_file(planted_file):
    path, _ = planted_file
    everything, train, held_out = (check(path, rows=side) for side in ("all", "train", "held_out"))
    assert sorted([*train.rows, *held_out.rows]) == everything.rows.tolist() == list(range(300))
    assert 35 < len(held_out.rows) < 85  # a fifth of 300
    assert as_dicts(unpack(everything.cells).take(held_out.rows)) == as_dicts(unpack(held_out.cells))
    assert train.dropped == {"other_side_of_split": len(held_out.rows)}
    assert sum(train.dropped.values()) + sum(held_out.dropped.values()) == 300
    later = check(path, rows="held_out", span=(150, 300))
    assert later.rows.tolist() == [row for row in held_out.rows if row >= 150]


def test_a_cell_is_on_the_same_side_in_every_file():
    names = [f"cell-{i}" for i in range(1000)]
    held_out = split_mask(names, "held_out")
    assert np.array_equal(split_mask(names[::-1], "held_out")[::-1], held_out)
    assert np.array_equal(split_mask(names, "train"), ~held_out)
    assert split_mask(names, "all").all()
    assert 0.16 < held_out.mean() < 0.24


def test_slabs_do_not_show_in_the_result(planted_file, monkeypatch):
    path, _ = planted_file
    whole = check(path, span=(7, 251))
    monkeypatch.setattr(checks_module, "SLAB_ROWS", 10)
    pieces = check(path, span=(7, 251))
    assert as_dicts(unpack(pieces.cells)) == as_dicts(unpack(whole.cells))
    for name in ("rows", "content"):
        assert getattr(pieces, name).tolist() == getattr(whole, name).tolist()
    assert pieces.cells.cell_ids.tolist() == whole.cells.cell_ids.tolist()
    assert pieces.profile.to_json() == whole.profile.to_json()


def test_no_rows_at_all(planted_file):
    path, _ = planted_file
    nothing = check(path, span=(20, 20))
    assert (nothing.cells.num_cells, len(nothing.rows), len(nothing.content)) == (0, 0, 0)
    assert nothing.profile.num_read == 0


def test_filters_of_the_source_and_of_the_ingest_both_hold(planted_file):
    path, planted = planted_file
    checked = check(path, filter="cell_type != 'monocyte'", keep="depth > 200")
    depth = planted.counts_CG.sum(axis=1)
    kept = [row for row in range(300) if planted.types[row] != "monocyte" and depth[row] > 200]
    assert 0 < len(kept) < 300
    assert checked.rows.tolist() == kept
    assert checked.dropped == {"filter": 300 - len(kept)}
    with pytest.raises(
        CorpusError, match=r"planted.h5ad: filter of the ingest: .*'tissue', which is not a column of obs"
    ):
        check(path, keep="tissue == 'blood'")


def test_a_bad_value_in_a_cell_that_is_not_wanted_does_no_harm(plant, build_adata, save, tmp_path):
    planted = plant(1, num_cells=2000)
    values = planted.counts_CG.copy()
    values[100, 3] = np.nan
    adata = build_adata(planted, matrix=sparse.csr_matrix(values))
    adata.obs["good"] = [row != 100 for row in range(2000)]
    path = save(adata, tmp_path / "bad.h5ad")
    assert check(path, span=(0, 2000), filter="good").dropped == {"filter": 1}
    with pytest.raises(CorpusError, match="NaN or infinite"):
        check(path, span=(0, 2000))


def test_expression_becomes_a_corpus_only_when_told_so():
    assert corpus_values(["counts", "near_counts", "recoverable"], CheckConfig()) == "counts"
    assert corpus_values(["counts", "expression"], CheckConfig()) == "expression"
    assert corpus_values([], CheckConfig()) == "counts"
    lenient = CheckConfig(rules=RuleConfig(not_recoverable="warn"))
    assert corpus_values(["recoverable"], lenient) == "expression"  # a cell that gives no counts back is kept as it is


def test_a_handful_of_cells_does_not_tell_what_share_is_recoverable(plant, build_adata, save, tmp_path):
    planted = plant(5, num_cells=1400)
    values = planted.log_normalised()
    values[70:74] *= np.random.default_rng(0).uniform(0.8, 1.2, (4, 300))
    path = save(build_adata(planted, matrix=sparse.csr_matrix(values)), tmp_path / "mixed.h5ad")
    checked = check(path, span=(68, 76))
    assert checked.dropped == {"not_recoverable": 4}
    with open_source(SourceConfig(uri=path)) as reader:
        whole = checked.profile.merge(SourceProfile(num_read=1392))
        refuse_unrecoverable(reader, whole, CheckConfig())
        with pytest.raises(CorpusError, match="only 50% of 8 log-normalised cells"):
            refuse_unrecoverable(reader, checked.profile, CheckConfig())


def test_a_sum_beyond_32_bits_is_refused(plant, build_adata, save, tmp_path):
    planted = plant(8)
    values = planted.counts_CG.astype(np.float64)
    values[20, 3] = 2.0**33
    path = save(build_adata(planted, matrix=sparse.csr_matrix(values)), tmp_path / "huge.h5ad")
    with pytest.raises(CorpusError, match=r"huge.h5ad: X, rows from 0: row 20 holds a value"):
        check(path)


def test_a_share_of_known_genes_can_be_asked_for(plant, build_adata, save, tmp_path):
    planted = plant(9)
    names = [*planted.genes[:150], *(f"probe_{i}" for i in range(150))]
    path = save(build_adata(planted, var_names=names), tmp_path / "half.h5ad")
    assert check(path, checks=CheckConfig(min_matched_share=0.5)).cells.num_cells > 0
    with pytest.raises(CorpusError, match="150 of 300 genes") as caught:
        check(path, checks=CheckConfig(min_matched_share=0.51))
    assert caught.value.details["rule"] == "min_matched_share"
    assert "lower checks.min_matched_share" in caught.value.remedy
