"""Every data rule with every severity it can have: what is refused, dropped, or kept with a warning."""

# C cells, G genes

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse

from cytoray.corpus.checking.checks import RowChecks, check_rows, corpus_values, map_source_genes
from cytoray.corpus.config import CheckConfig, RuleConfig, SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.corpus.readers.values import sample_ranges
from cytoray.corpus.validate import ValidateConfig, validate
from cytoray.errors import CorpusError
from cytoray.tokens.packed import packed_counts, packed_gene_ids

NUM_CELLS = 2_000  # so that the sample of rows by which a file is judged leaves rows 64 to 176 out
BAD = (100, 140)  # rows that break a rule about cells


@dataclass(frozen=True)
class Case:
    """How to break one rule, and what must be told of it."""

    breaks: Callable[[anndata.AnnData], object]  # changes a good file, in place
    about_cells: bool = True  # else the rule is about the whole file
    names_gene: bool = False
    checks: typing.Mapping[str, object] | None = None


def put(value: float) -> Callable[[anndata.AnnData], None]:
    """Plants a value into the sixth gene of the bad cells."""

    def breaks(adata: anndata.AnnData) -> None:
        for row in BAD:
            adata.X[row, 5] = value

    return breaks


def smooth(adata: anndata.AnnData) -> None:
    """Expression that comes from no counts."""
    adata.X = np.log1p(adata.X) * np.random.default_rng(0).uniform(0.5, 2, adata.n_vars).astype(np.float32)


def log_normalise(adata: anndata.AnnData) -> None:
    adata.X = np.log1p(adata.X * (1e4 / adata.X.sum(axis=1, keepdims=True))).astype(np.float32)


def spoil(adata: anndata.AnnData) -> None:
    """Log-normalised, but for the bad cells' values."""
    log_normalise(adata)
    adata.X[list(BAD)] *= np.random.default_rng(0).uniform(0.8, 1.2, adata.n_vars)


def empty(adata: anndata.AnnData) -> None:
    adata.X[list(BAD)] = 0


def thin(adata: anndata.AnnData) -> None:
    adata.X[list(BAD), 2:] = 0
    adata.X[list(BAD), :2] = 3


def repeat_names(adata: anndata.AnnData) -> None:
    names = adata.obs_names.to_numpy().copy()
    names[list(BAD)] = names[7]
    adata.obs_names = names


def repeat_cells(adata: anndata.AnnData) -> None:
    adata.X[list(BAD)] = adata.X[7]


def rename(adata: anndata.AnnData, names: dict[int, str]) -> None:
    there = adata.var_names.to_numpy().copy()
    for column, name in names.items():
        there[column] = name
    adata.var_names = there


def repeat_genes(adata: anndata.AnnData) -> None:
    rename(adata, {10: adata.var_names[0]})


def unknown_names(adata: anndata.AnnData) -> None:
    rename(adata, {10: "probe_1", 11: "probe_2"})


def mouse_names(adata: anndata.AnnData) -> None:
    rename(adata, {column: f"{name.capitalize()}x" for column, name in enumerate(adata.var_names) if column > 20})


def mix_species(adata: anndata.AnnData) -> None:
    """The last hundred genes are a mouse's; the bad cells have most of their counts there, the others one in 20."""
    rename(adata, {200 + number: f"ENSMUSG{number:011d}" for number in range(100)})
    human = adata.X[:, :200].sum(axis=1)
    adata.X[:, 200:] = 0
    adata.X[:, 210] = np.floor(human / 20)
    adata.X[list(BAD), 220] = human[list(BAD)]


def old_names(adata: anndata.AnnData) -> None:
    rename(adata, {10: "PLA2G2C", 11: "UBXN10-AS1"})


CASES = {
    "not_finite": Case(put(np.nan), names_gene=True),
    "negative": Case(put(-2.0), names_gene=True),
    "non_integer": Case(put(1.5), names_gene=True),
    "not_counts": Case(smooth, about_cells=False),
    "recovered": Case(log_normalise, about_cells=False),
    "not_recoverable": Case(spoil),
    "empty_cell": Case(empty),
    "too_few_genes": Case(thin, checks={"min_genes": 3}),
    "duplicate_cell": Case(repeat_cells),
    "duplicate_barcode": Case(repeat_names),
    "duplicate_gene": Case(repeat_genes, about_cells=False),
    "unknown_genes": Case(unknown_names, about_cells=False),
    "wrong_species": Case(mouse_names, about_cells=False),
    "mixed_species": Case(mix_species),
    "unsorted_indices": Case(lambda adata: None),
}


def severities(rule: str) -> list[str]:
    """Every severity a rule may have, through the literals and their unions."""
    kinds, found = [RuleConfig.model_fields[rule].annotation], []
    while kinds:
        kind = kinds.pop()
        if isinstance(kind, str):
            found.append(kind)
        kinds += typing.get_args(kind)
    return sorted(found)


SEVERITIES = [(rule, severity) for rule in CASES for severity in severities(rule)]


@pytest.fixture(scope="module")
def good(plant, build_adata) -> Callable[[], anndata.AnnData]:
    """A function that builds a file without fault, dense so that a test may change it."""
    planted = plant(11, num_cells=NUM_CELLS)
    planted.counts_CG[:, :6] += 1  # no cell has fewer genes
    return lambda: build_adata(planted, matrix=planted.counts_CG.copy())


@pytest.fixture
def write(good, save, tmp_path) -> Callable[[str], str]:
    """A function that writes a file which breaks one rule."""

    def make(rule: str) -> str:
        adata = good()
        CASES[rule].breaks(adata)
        adata.X = sparse.csr_matrix(adata.X)
        path = save(adata, tmp_path / f"{rule}.h5ad")
        if rule == "unsorted_indices":
            swap_entries(path)
        return path

    return make


def swap_entries(path: str) -> None:
    """Exchange the first two entries of the bad rows."""
    with h5py.File(path, "a") as file:
        indptr = file["X/indptr"][:]
        for name in ("X/indices", "X/data"):
            for row in BAD:
                first = int(indptr[row])
                file[name][first : first + 2] = file[name][first : first + 2][::-1]


def configure(rule: str, severity: str) -> CheckConfig:
    case = CASES[rule]
    rules = RuleConfig.model_validate({rule: severity})
    return CheckConfig.model_validate({"rules": rules, **(case.checks or {})})


def check(path: str, checks: CheckConfig, vocabulary):
    with open_source(SourceConfig(uri=path)) as reader:
        mapping = map_source_genes(reader, vocabulary, checks)
        options = RowChecks(checks, values=corpus_values([reader.value_kind], checks))
        return check_rows(reader, mapping, options, start=0, stop=NUM_CELLS)


def test_every_rule_has_a_case():
    assert CASES.keys() == RuleConfig.model_fields.keys()


def test_a_good_file_breaks_no_rule(good, save, tmp_path, vocabulary):
    adata = good()
    adata.X = sparse.csr_matrix(adata.X)
    path = save(adata, tmp_path / "good.h5ad")
    strict = dict.fromkeys(RuleConfig.model_fields, "error")
    checked = check(path, CheckConfig(rules=RuleConfig.model_validate(strict)), vocabulary)
    assert checked.cells.num_cells == NUM_CELLS
    assert (checked.dropped, checked.warned, checked.profile.findings) == ({}, {}, {})
    assert not validate([SourceConfig(uri=path)], options=ValidateConfig(checks=CheckConfig())).quarantined


@pytest.mark.parametrize(("rule", "severity"), [pair for pair in SEVERITIES if pair[0] != "duplicate_cell"])
def test_rule(rule: str, severity: str, write, gene_symbols, vocabulary):
    case, checks, path = CASES[rule], configure(rule, severity), write(rule)
    if severity == "error":
        with pytest.raises(CorpusError) as caught:
            check(path, checks, vocabulary)
        assert caught.value.details["rule"] == rule
        assert path in caught.value.problem
        assert f"checks.rules.{rule}" in caught.value.remedy
        if case.about_cells and rule not in ("unsorted_indices", "mixed_species"):
            assert caught.value.details["row"] == BAD[0]
            assert f"cell {caught.value.details['cell']!r} (row {BAD[0]})" in caught.value.problem
        if case.names_gene:
            assert caught.value.details["gene"] == gene_symbols[5]
            assert f"gene {gene_symbols[5]!r}" in caught.value.problem
        return
    checked = check(path, checks, vocabulary)
    everything = list(range(NUM_CELLS))
    if severity == "drop":
        assert checked.dropped == {rule: len(BAD)}
        assert checked.rows.tolist() == [row for row in everything if row not in BAD]
        assert checked.profile.num_kept == NUM_CELLS - len(BAD)
    elif case.about_cells:
        assert checked.warned[rule] == len(BAD)
        assert checked.rows.tolist() == everything
    else:
        assert rule in checked.profile.findings
        assert checked.rows.tolist() == everything


def test_older_names_of_a_gene_with_its_own_column_are_left_out(good, save, tmp_path, vocabulary):
    adata = good()
    old_names(adata)
    own, older = adata.X[:, 10].sum(), adata.X[:, 11].sum()
    path = save(adata, tmp_path / "old.h5ad")
    token = vocabulary.index["PLA2G2C"]
    for sum_older, expected in ((False, own), (True, own + older)):
        checked = check(path, CheckConfig(sum_older_names=sum_older), vocabulary)
        values, genes = packed_counts(checked.cells), packed_gene_ids(checked.cells)
        assert values[genes == token].sum() == expected
        profile = checked.profile
        assert ("older_name" in profile.findings) == (not sum_older)
        assert profile.column_values == {"PLA2G2C": (older,) if not sum_older else (own, older)}
        assert profile.lost_values == (0 if sum_older else older)
        assert profile.sum_values == adata.X.sum()


def test_the_report_counts_no_copies(good, save, tmp_path):
    """What is dropped as a copy is in no histogram, no label and no gene's cells, wherever it stands."""
    adata = good()
    adata.X[1500:1900] = adata.X[:400]
    adata.obs["batch"] = ["b1" if row < 1500 else "b2" for row in range(NUM_CELLS)]
    copied = save(adata, tmp_path / "a.h5ad")
    expected = save(adata[[*range(1500), *range(1900, NUM_CELLS)]].copy(), tmp_path / "b.h5ad")
    options = ValidateConfig(labels=("batch",))
    (copies,) = validate([SourceConfig(uri=copied, name="x")], options=options).files
    (clean,) = validate([SourceConfig(uri=expected, name="x")], options=options).files
    assert copies.profile.dropped == {"duplicate_cell": 400}
    mine, its = copies.profile.to_json(), clean.profile.to_json()
    for name in ("num_kept", "depth", "genes_per_cell", "gene_cells", "labels", "findings", "sum_values"):
        assert mine[name] == its[name]
    assert copies.profile.gene_cells.max() <= copies.profile.num_kept == 1600


@pytest.mark.parametrize("where", ["in one file", "in two files"])
@pytest.mark.parametrize("severity", [severity for rule, severity in SEVERITIES if rule == "duplicate_cell"])
def test_a_copy_of_a_cell(where: str, severity: str, good, write, save, tmp_path):
    if where == "in one file":
        paths = [write("duplicate_cell")]
    else:
        one, two = good(), good()
        paths = [save(one[:50].copy(), tmp_path / "a.h5ad"), save(two[48:100].copy(), tmp_path / "b.h5ad")]
    checks = configure("duplicate_cell", severity)
    report = validate([SourceConfig(uri=path) for path in paths], options=ValidateConfig(checks=checks))
    last = paths[-1]  # the copies are in the last file; what is first by name and row stays
    files = {file.description.uri: file.profile for file in report.files}
    if severity == "error":
        (refused,) = report.quarantined
        assert (refused.uri, refused.rule) == (last, "duplicate_cell")
        assert "2 cells have the same counts as another" in refused.reason
        assert "checks.rules.duplicate_cell" in refused.remedy
        originals = f"row {BAD[0]}, like row 7" if where == "in one file" else f"row 0, like row 48 of {paths[0]}"
        assert originals in refused.reason
        assert last not in files
    else:
        assert not report.quarantined
        assert files[last].dropped.get("duplicate_cell", 0) == (2 if severity == "drop" else 0)
        assert files[last].warned.get("duplicate_cell", 0) == (2 if severity == "warn" else 0)
        assert files[last].num_kept == files[last].num_read - (2 if severity == "drop" else 0)
        assert all(not files[path].dropped for path in paths[:-1])


@pytest.mark.parametrize(
    "rule", [rule for rule, severity in SEVERITIES if severity == "drop" and CASES[rule].names_gene]
)
def test_a_dropped_value_harms_nobody_else(rule: str, good, write, vocabulary):
    """The other cells are those of the file without the fault."""
    dropped = check(write(rule), configure(rule, "drop"), vocabulary)
    clean = good()
    expected = np.delete(clean.X.sum(axis=1), BAD)
    assert dropped.cells.num_cells == len(expected)
    assert np.isclose(packed_counts(dropped.cells).sum(), expected.sum())


@pytest.mark.parametrize("rule", [rule for rule, case in CASES.items() if case.names_gene])
def test_a_bad_value_among_the_sampled_rows_is_told_by_its_own_rule(rule: str, good, save, tmp_path, vocabulary):
    """One bad cell does not make a file of counts anything else."""
    adata = good()
    CASES[rule].breaks(adata)
    adata.X[[5, 1990], 7] = adata.X[BAD[0], 5]
    adata.X = sparse.csr_matrix(adata.X)
    path = save(adata, tmp_path / "a.h5ad")
    with pytest.raises(CorpusError) as caught:
        check(path, configure(rule, "error"), vocabulary)
    assert (caught.value.details["rule"], caught.value.details["row"]) == (rule, 5)
    assert check(path, configure(rule, "drop"), vocabulary).dropped == {rule: 4}


def test_the_faults_lie_outside_the_sample_by_which_a_file_is_judged():
    assert not any(start <= row < stop for row in BAD for start, stop in sample_ranges(NUM_CELLS))
