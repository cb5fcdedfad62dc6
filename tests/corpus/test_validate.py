# C cells

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from scipy import sparse

from cytoray import storage
from cytoray.cli.main import main
from cytoray.corpus import validate as validate_module
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.validate import ValidateConfig, find_copies, validate
from cytoray.errors import CorpusError

DATA = Path(__file__).parents[3] / "shared" / "data"
real_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """A function that runs ``cytoray data validate`` here; returns its exit code, stdout and stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cytoray", "data", "validate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return command


def found(report, uri: str):
    return next(file for file in report.files if file.description.uri == uri)


def test_a_good_file(planted_file, run):
    path, planted = planted_file
    code, out, _ = run(path)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == path
    assert lines[1].startswith("  300 cells x 300 genes, h5ad X (raw counts), ")
    assert lines[2].startswith("  genes: human, symbol; 300 of 300 (100.0%) in the vocabulary (")
    assert lines[3].startswith("  cells: 300 of 300 kept; about ")
    assert lines[-1] == "1 file: 1 good, 0 refused; 300 of 300 cells read would be kept"
    assert int(planted.counts_CG.sum()) > 0


def break_file(path: str, how: str) -> None:
    file = Path(path)
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-4_000])
    elif how == "a PNG":
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(500))
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "without X":
        with h5py.File(path, "a") as opened:
            del opened["X"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "truncated"),
        ("a PNG", "looks like a PNG image"),
        ("empty", "the file is empty"),
        ("without X", "no expression matrix (no X, raw.X or layers)"),
    ],
)
def test_a_broken_file_takes_one_line(how: str, said: str, planted_file, plant, build_adata, save, tmp_path, run):
    good, _ = planted_file
    bad = save(build_adata(plant(2, prefix="other")), tmp_path / "bad.h5ad")
    break_file(bad, how)
    code, out, _ = run(good, bad)
    assert code == 2
    (line,) = [line for line in out.splitlines() if bad in line]
    assert line.startswith((f"{bad}: refused (malformed", f"{bad}: refused (not_cells"))
    assert said in line
    assert "Traceback" not in out
    assert out.splitlines()[-1] == "2 files: 1 good, 1 refused; 300 of 300 cells read would be kept"


def test_a_file_that_is_not_there_is_refused_and_the_others_are_read(planted_file, run):
    path, _ = planted_file
    code, out, _ = run(f"{path}x", path)
    assert code == 2
    assert f"{path}x: refused (unreachable): there is no such object." in out
    assert "1 good, 1 refused" in out


def test_a_misspelt_rule_is_told_with_the_nearest(planted_file, run):
    path, _ = planted_file
    code, out, err = run(path, "--set", "checks.rules.emptycell=warn")
    assert (code, out) == (2, "")
    assert "did you mean checks.rules.empty_cell?" in err


def test_options_reach_the_checks(planted_file, run):
    path, planted = planted_file
    genes = (planted.counts_CG > 0).sum(axis=1)
    wanted = np.array(planted.types) == "T cell"
    code, out, _ = run(path, "--set", "checks.min_genes=90", "--set", "filter=cell_type == 'T cell'")
    assert code == 0
    kept = int((wanted & (genes >= 90)).sum())
    assert 0 < kept < 300
    assert (
        f"{kept} of 300 kept (left out: {(~wanted).sum()} filter, {(wanted & (genes < 90)).sum()} too_few_genes)" in out
    )


def test_a_label_that_every_file_must_have(planted_file, plant, build_adata, save, tmp_path, run):
    path, _ = planted_file
    adata = build_adata(plant(2, prefix="other"))
    del adata.obs["cell_type"]
    without = save(adata, tmp_path / "without.h5ad")
    code, out, _ = run(path, without, "--label", "cell_type")
    assert code == 2
    assert "  label cell_type: 3 values, 0 of 300 kept cells without one" in out
    assert f"{without}: refused (label at obs/cell_type): obs has no column 'cell_type'. Columns there: depth." in out


def test_another_matrix_and_column_can_be_named(plant, build_adata, save, tmp_path, run):
    adata = build_adata(plant(2), var_names=[f"probe_{n}" for n in range(300)])
    adata.var["symbol_here"] = plant(2).genes
    adata.layers["umi"] = adata.X.copy()
    path = save(adata, tmp_path / "a.h5ad")
    assert "note: genes are named by column 'symbol_here' of var" in run(path)[1]
    code, out, _ = run(path, "--set", "gene_column=symbol_here", "--set", "matrix=layers/umi")
    assert code == 0
    assert "h5ad layers/umi (raw counts)" in out


def test_the_report_is_written(planted_file, tmp_path, run):
    path, _ = planted_file
    code, out, _ = run(path, "--report", str(tmp_path / "report"))
    assert code == 0
    assert f"report: {tmp_path}/report/report.html" in out
    assert json.loads((tmp_path / "report/report.json").read_text())["num_kept"] == 300
    assert "<html" in (tmp_path / "report/report.html").read_text()


def test_a_prefix_in_an_object_store(planted_file, plant, build_adata, save, tmp_path, s3_uri, run):
    path, _ = planted_file
    other = save(build_adata(plant(2, prefix="other")), tmp_path / "other.h5ad")
    storage.write_bytes(f"{s3_uri}/in/a.h5ad", Path(path).read_bytes())
    storage.write_bytes(f"{s3_uri}/in/deep/b.h5ad", Path(other).read_bytes())
    storage.write_bytes(f"{s3_uri}/in/bad.h5ad", Path(other).read_bytes()[:9_000])
    storage.write_bytes(f"{s3_uri}/in/readme.txt", b"no cells")
    code, out, _ = run(f"{s3_uri}/in/")
    assert code == 2
    assert f"{s3_uri}/in/bad.h5ad: refused (malformed" in out
    assert "3 files: 2 good, 1 refused; 600 of 600 cells read would be kept" in out


def test_ranges_do_not_show_in_the_report(planted_file, monkeypatch):
    path, _ = planted_file
    options = ValidateConfig()
    whole = validate([SourceConfig(uri=path)], options=options)
    monkeypatch.setattr(validate_module, "ROWS_AT_A_TIME", 7)
    told: list[float] = []
    pieces = validate([SourceConfig(uri=path)], options=options, advance=lambda amount, note="": told.append(amount))
    assert pieces.to_json() == whole.to_json()
    assert sum(told) == 300
    assert max(told) == 7


def test_a_file_without_cells(plant, build_adata, save, tmp_path):
    path = save(build_adata(plant(1))[:0].copy(), tmp_path / "none.h5ad")
    report = validate([SourceConfig(uri=path)], options=ValidateConfig())
    assert not report.files
    assert [(record.rule, record.key) for record in report.quarantined] == [("no_cells", "X")]


def test_the_same_file_twice_is_read_once(planted_file):
    path, _ = planted_file
    options = ValidateConfig()
    assert len(validate(options.sources([path, path]), options=options).files) == 1


def test_files_of_one_name_in_different_folders(planted_file, tmp_path):
    path, _ = planted_file
    (tmp_path / "copy").mkdir()
    copy = str(shutil.copy(path, tmp_path / "copy" / Path(path).name))
    options = ValidateConfig()
    report = validate(options.sources([path, copy]), options=options)
    assert found(report, path).profile.dropped == {"duplicate_cell": 300}
    assert found(report, copy).profile.num_kept == 300


def test_too_few_recoverable_cells_refuse_the_file(plant, build_adata, save, tmp_path):
    planted = plant(5, num_cells=3000)
    values = planted.log_normalised()
    values[64:176] *= np.random.default_rng(0).uniform(0.8, 1.2, (112, 300))  # between the sampled rows
    path = save(build_adata(planted, matrix=sparse.csr_matrix(values)), tmp_path / "a.h5ad")
    for share, num_refused in ((0.95, 0), (0.99, 1)):
        options = ValidateConfig.model_validate({"checks": {"min_recoverable": share}})
        report = validate([SourceConfig(uri=path)], options=options)
        assert [record.rule for record in report.quarantined] == ["min_recoverable"] * num_refused


def test_an_empty_prefix_is_an_error(tmp_path):
    with pytest.raises(CorpusError):
        validate([SourceConfig(uri=f"{tmp_path}/")], options=ValidateConfig())


def test_an_option_that_cannot_be_is_told(planted_file, run):
    path, _ = planted_file
    for arguments in (
        (path, "--set", "matrix=Y"),
        (path, "--set", "format=docx"),
        ("package://no_such_package/a.h5ad",),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")


# --- copies of cells


def test_copies_among_many_sources():
    def content(*values: int) -> np.ndarray:
        return np.array(values, np.uint64)

    seen = {
        "b": (content(1, 2, 3, 1), np.array([10, 20, 30, 40])),
        "a": (content(3, 9), np.array([5, 6])),
        "c": (content(2, 7), np.array([0, 1])),
    }
    copies = find_copies(seen)
    assert {name: part.rows.tolist() for name, part in copies.items()} == {"b": [30, 40], "c": [0]}
    assert copies["b"].originals == [("a", 5), ("b", 10)]
    assert copies["c"].originals == [("b", 20)]
    assert find_copies({}) == {}
    assert find_copies({"a": (content(), np.array([], np.int64))}) == {}


def test_copies_as_a_plain_loop_finds_them():
    rng = np.random.default_rng(0)
    seen = {name: (rng.integers(0, 60, 50).astype(np.uint64), rng.permutation(1000)[:50]) for name in "zyx"}
    first: dict[int, tuple[str, int]] = {}
    expected: dict[str, dict[int, tuple[str, int]]] = {}
    for name in sorted(seen):
        for row, value in sorted(zip(seen[name][1].tolist(), seen[name][0].tolist(), strict=True)):
            if value in first:
                expected.setdefault(name, {})[row] = first[value]
            else:
                first[value] = (name, row)
    copies = find_copies(seen)
    assert {
        name: dict(zip(part.rows.tolist(), part.originals, strict=True)) for name, part in copies.items()
    } == expected


# --- real files


@real_data
def test_mouse_genes_are_told_with_the_way_out(run):
    code, out, _ = run(str(DATA / "mouse_sln.h5ad"))
    assert code == 2
    (line, _) = out.splitlines()
    assert "refused (wrong_species): these are mouse genes (Rrs1, " in line
    assert "but the vocabulary is human: 6 of 4,005 genes are in the vocabulary" in line
    assert "human orthologs" in line
    assert "gene_column" in line


@real_data
def test_counts_with_float_noise_are_near_integers(tmp_path, run):
    adata = anndata.read_h5ad(DATA / "celltypist_demo.h5ad")
    rng = np.random.default_rng(0)
    noise = np.where(rng.random(adata.X.nnz) < 0.41, rng.uniform(-1e-4, 1e-4, adata.X.nnz), 0)
    adata.X.data = (adata.X.data + noise).astype(np.float32)
    adata.write_h5ad(tmp_path / "noisy.h5ad")
    code, out, _ = run(str(tmp_path / "noisy.h5ad"))
    assert code == 0
    assert "near-integer counts, rounded" in out
    assert "near_counts: the values of X are within 0.001 of integers, and are rounded to them" in out
    assert "559 of 559 kept" in out
