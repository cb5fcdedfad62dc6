"""Folders as instruments and repositories leave them: what is read, and what is listed as not read and why."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from cytoray import storage
from cytoray.cli.main import app
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.finding import FoundSources, find_sources, not_read_lines
from cytoray.errors import CorpusError

CELL_RANGER = (
    "filtered_feature_bc_matrix/matrix.mtx.gz", "filtered_feature_bc_matrix/features.tsv.gz",
    "filtered_feature_bc_matrix/barcodes.tsv.gz", "raw_feature_bc_matrix/matrix.mtx.gz",
    "raw_feature_bc_matrix/features.tsv.gz", "raw_feature_bc_matrix/barcodes.tsv.gz", "filtered_feature_bc_matrix.h5",
    "raw_feature_bc_matrix.h5", "molecule_info.h5", "web_summary.html", "metrics_summary.csv", "cloupe.cloupe",
    "analysis/clustering/graphclust/clusters.csv", "possorted_genome_bam.bam",
)  # fmt: skip


def make(root: Path | str, names: tuple[str, ...]) -> str:
    for name in names:
        storage.write_bytes(f"{root}/{name}", b"")
    return str(root)


def find(root: Path | str, **options: object) -> FoundSources:
    return find_sources([SourceConfig(uri=f"{root}/", **options)])


def keys(found: FoundSources) -> list[str]:
    return [source.identity for source in found.sources]


def reasons(found: FoundSources, root: Path | str) -> dict[str, str]:
    return {file.uri.removeprefix(f"{root}/"): file.reason for file in found.not_read}


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_of_a_cell_ranger_run_the_filtered_matrix_is_read_once(place: str, tmp_path, s3_uri):
    root = make(tmp_path if place == "disk" else s3_uri, CELL_RANGER)
    found = find(root)
    assert keys(found) == ["filtered_feature_bc_matrix.h5"]
    why = reasons(found, root)
    assert why["raw_feature_bc_matrix.h5"] == "the unfiltered droplets beside filtered_feature_bc_matrix.h5"
    assert why["raw_feature_bc_matrix"] == "the unfiltered droplets beside filtered_feature_bc_matrix.h5"
    assert why["filtered_feature_bc_matrix"] == "the same matrix as filtered_feature_bc_matrix.h5"
    assert "molecules" in why["molecule_info.h5"]
    rest = {"web_summary.html", "metrics_summary.csv", "cloupe.cloupe", "possorted_genome_bam.bam"}
    assert rest | {"analysis/clustering/graphclust/clusters.csv"} < set(why)
    assert all(file.remedy for file in found.not_read)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("GSM1_raw_feature_bc_matrix.h5", "GSM2_filtered_feature_bc_matrix.h5"), None),  # of two samples
        (("GSM1_raw_feature_bc_matrix.h5", "GSM1_filtered_feature_bc_matrix.h5"),
         ["GSM1_filtered_feature_bc_matrix.h5"]),
        (("raw_feature_bc_matrix.h5",), None),
        (("pbmc_raw.h5ad", "pbmc_filtered.h5ad"), ["pbmc_filtered.h5ad"]),
        (("pbmc_raw.h5ad", "pbmc_normalised.h5ad"), None),
        (("draws.h5ad", "filtered.h5ad"), None),  # no word "raw"
        (("a.h5ad", "a.h5ad.gz", "b.zarr.zip"), ["a.h5ad", "b.zarr.zip"]),
        (("raw_gene_bc_matrices_h5.h5", "filtered_gene_bc_matrices_h5.h5"), ["filtered_gene_bc_matrices_h5.h5"]),
        (
            ("outs/multi/count/raw_feature_bc_matrix.h5",
             "outs/per_sample_outs/s1/count/sample_filtered_feature_bc_matrix.h5",
             "outs/per_sample_outs/s1/count/sample_raw_feature_bc_matrix.h5"),
            ["outs/per_sample_outs/s1/count/sample_filtered_feature_bc_matrix.h5"],
        ),
        (
            tuple(f"Solo.out/Gene/{kind}/{file}" for kind in ("raw", "filtered") for file in
                  ("matrix.mtx", "features.tsv", "barcodes.tsv")),
            ["Solo.out/Gene/filtered"],
        ),
        (
            tuple(f"filtered_gene_bc_matrices/{genome}/{file}" for genome in ("GRCh38", "mm10") for file in
                  ("matrix.mtx", "genes.tsv", "barcodes.tsv")),
            ["filtered_gene_bc_matrices/GRCh38", "filtered_gene_bc_matrices/mm10"],
        ),
        (("x.h5ad", "DGE.mtx"), ["x.h5ad"]),
        (("DGE.mtx", "all_genes.csv", "cell_metadata.csv"), ["DGE.mtx"]),
        (("GSM1_matrix.mtx.gz", "GSM1_barcodes.tsv.gz", "GSM2_matrix.mtx.gz", "GSM2_barcodes.tsv.gz",
          "GSE9_features.tsv.gz"), ["GSM1_matrix.mtx.gz", "GSM2_matrix.mtx.gz"]),
        (("GSM1_m_1.mtx", "GSM1_barcodes_1.tsv", "GSM1_genes_1.tsv", "GSM1_m_2.mtx", "GSM1_barcodes_2.tsv",
          "GSM1_genes_2.tsv"), ["GSM1_m_1.mtx", "GSM1_m_2.mtx"]),
        (("spliced.mtx", "unspliced.mtx", "matrix.mtx", "features.tsv", "barcodes.tsv", "marker_genes.csv"), [""]),
        (("run/matrix.mtx", "run/features.tsv", "run/barcodes.tsv", "run/more.h5ad"), ["run", "run/more.h5ad"]),
        (("cells_x_genes.mtx", "cells_x_genes.genes.txt", "cells_x_genes.barcodes.txt"), ["cells_x_genes.mtx"]),
        (("a.h5ad", "._a.h5ad", "notes.md"), ["a.h5ad"]),
        (("a.h5ad", "cells.rds", "fastqs.tar.gz", "counts.csv.gz", "t.xlsx"), ["a.h5ad"]),
    ],
)  # fmt: skip
def test_what_is_read_of_a_mixed_folder(names: tuple[str, ...], expected: list[str] | None, tmp_path):
    root = make(tmp_path / "in", names)
    found = find(root)
    wanted = sorted(names) if expected is None else [name or "in" for name in expected]
    assert keys(found) == wanted
    used = {"features", "barcodes", "genes", "metadata"}
    for name in set(names) - set(wanted):
        is_listed = name in reasons(found, root) or name.rpartition("/")[0] in reasons(found, root)
        assert is_listed or any(word in name for word in used) or "matrix.mtx" in name


def test_ambiguous_files_are_opened_to_see_what_they_are(write_format, plant, build_adata, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path / "in"
    good = write_format("10x_h5-3", build_adata(plant(0)), root)
    good.rename(root / "sample.h5")
    with h5py.File(root / "weights.h5", "w") as file:
        file["layer/kernel"] = np.zeros(3)
    with h5py.File(root / "molecules.h5", "w") as file:
        file["barcode_idx"], file["barcodes"] = np.zeros(3), np.zeros(2)
    pq.write_table(pa.table({"donor": ["a"], "age": [3]}), root / "donors.parquet")
    (root / "broken.h5").write_bytes(good.with_name("sample.h5").read_bytes()[:5_000])
    found = find(root)
    assert keys(found) == ["broken.h5", "sample.h5"]  # a damaged file is refused by name, not passed over
    why = reasons(found, root)
    assert "it has layer" in why["weights.h5"]
    assert "molecules of Cell Ranger" in why["molecules.h5"]
    assert "columns there: donor, age" in why["donors.parquet"]


def test_files_not_read_are_listed_by_reason_on_the_command_line(planted_file, tmp_path):
    path, _ = planted_file
    Path(path).rename(tmp_path / "in.h5ad")
    root = tmp_path / "folder"
    root.mkdir()
    (tmp_path / "in.h5ad").rename(root / "a.h5ad")
    make(root, ("DGE.mtx", *(f"t{number}.csv" for number in range(5))))
    result = CliRunner().invoke(app, ["data", "validate", str(root), "--report", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("not read: ")]
    assert len(lines) == 2
    assert any("DGE.mtx: features.tsv or genes.tsv is missing beside DGE.mtx" in line for line in lines)
    assert any("t2.csv and 2 more: a table in text. If it holds counts" in line for line in lines)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(report["not_read"]) == 6


def test_a_folder_of_nothing_known_says_what_lies_there(tmp_path):
    root = make(tmp_path, ("cells.rds", "barcodes.tsv"))
    with pytest.raises(CorpusError, match=r"no file of cells below this prefix \(2 other files\)") as caught:
        find(root)
    assert "zellkonverter" in caught.value.remedy


# --- names


def test_sources_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for sample in ("s1", "s2"):
        make(tmp_path / sample / "outs", ("filtered_feature_bc_matrix.h5", "other.h5ad"))
    files = [f"{tmp_path}/{sample}/outs/filtered_feature_bc_matrix.h5" for sample in ("s1", "s2")]
    ends = [f"{sample}/outs/filtered_feature_bc_matrix.h5" for sample in ("s1", "s2")]
    assert keys(find_sources([SourceConfig(uri=file) for file in files])) == ends
    both = find_sources([SourceConfig(uri=str(tmp_path / sample / "outs")) for sample in ("s1", "s2")])
    assert keys(both) == [ends[0], "s1/outs/other.h5ad", ends[1], "s2/outs/other.h5ad"]
    one = find_sources([SourceConfig(uri=files[0], name="mine"), SourceConfig(uri=files[1])])
    assert keys(one) == ["mine", "filtered_feature_bc_matrix.h5"]
    with pytest.raises(CorpusError, match="2 sources are called 'mine'"):
        find_sources([SourceConfig(uri=file, name="mine") for file in files])


def test_sources_that_a_corpus_has_keep_their_names(tmp_path):
    """A corpus has s1 under its short name: adding s2 gives that one the longer name, with s1 listed again or not."""
    files = [SourceConfig(uri=f"{make(tmp_path / sample, ('a.h5ad',))}/a.h5ad") for sample in ("s1", "s2")]
    known = {files[0].uri: "a.h5ad"}
    again = find_sources(files, known=known)
    assert keys(again) == ["a.h5ad", "s2/a.h5ad"]
    assert again.sources[0] == files[0]  # its digest is on record
    assert keys(find_sources(files[1:], known=known)) == ["s2/a.h5ad"]


def test_not_read_lines_group_by_reason(tmp_path):
    found = find(make(tmp_path, ("a.h5ad", *(f"{number}.csv" for number in range(9)))))
    (line,) = not_read_lines(found.not_read)
    assert "and 6 more: a table in text" in line


def test_the_tables_of_a_damaged_gzip_are_no_reason_to_pass_a_matrix_over(tmp_path):
    make(tmp_path, ("matrix.mtx", "features.tsv"))
    (tmp_path / "barcodes.tsv").write_bytes(gzip.compress(b"a\n")[:5])
    assert keys(find(tmp_path)) == [tmp_path.name]
