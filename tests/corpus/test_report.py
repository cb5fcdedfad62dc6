# C cells

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from cytoray import storage
from cytoray.corpus.checking.profile import NUM_DEPTH_BINS, GeneOverlap, SourceProfile, log2_histogram
from cytoray.corpus.config import RuleConfig
from cytoray.corpus.readers.base import SourceDescription
from cytoray.corpus.reporting.report import CorpusFacts, DataReport, FileReport, Quarantined
from cytoray.corpus.reporting.report_page import render_page, write_report
from cytoray.corpus.reporting.report_text import file_lines, log_report, refused_line, report_lines, size_text
from cytoray.errors import CorpusError, NotFoundError

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Text, images and links of a page; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def describe(uri: str, **changes: object) -> SourceDescription:
    values = {
        "uri": uri, "num_bytes": 1_234_567, "version": "v1", "format": "h5ad", "matrix": "layers/raw",
        "value_kind": "counts", "num_cells": 1000, "num_genes": 40, "num_entries": 9_000, "id_type": "symbol",
        "species": "human", "label_columns": ("tissue",), "modalities": (), **changes,
    }  # fmt: skip
    return SourceDescription(**values)


def profile(seed: int = 0, **changes: object) -> SourceProfile:
    rng = np.random.default_rng(seed)
    depth = log2_histogram(rng.lognormal(8, 0.5, 990), NUM_DEPTH_BINS)
    overlap = GeneOverlap(40, 38, {"symbol": 30, "ensembl": 8, "unknown": 2}, ("X1", "X2"), {}, 0, "symbol", "human")
    values = {
        "num_read": 1000, "num_kept": 990, "dropped": {"empty_cell": 10}, "warned": {"duplicate_barcode": 3},
        "findings": {"unknown_genes": "2 of 40 genes are not in the vocabulary"}, "depth": depth, "num_binned": 60,
        "genes_per_cell": log2_histogram(rng.integers(5, 38, 990), 136), "bins": rng.integers(1, 99, 51),
        "gene_cells": rng.integers(0, 990, 500), "labels": {"tissue": {"blood": 900, "lung": 90}}, "genes": overlap,
        **changes,
    }  # fmt: skip
    return SourceProfile(**values)


@pytest.fixture
def report() -> DataReport:
    files = (
        FileReport(describe("s3://cells/a.h5ad"), profile()),
        FileReport(describe("s3://cells/b.h5ad"), profile(1)),
    )
    facts = CorpusFacts("atlas", 3, "d1935e57", num_cells=1980, num_bytes=3_000_000, num_shards=2)
    refused = Quarantined("s3://cells/c.h5ad", "X", "negative", "X holds negative values", "Name the raw counts.")
    return DataReport("Data report of atlas", files, (refused,), facts)


def test_the_page_says_what_the_report_holds(report):
    page = Page(render_page(report))
    for words in (
        "Data report of atlas", "atlas@3", "d1935e57", "1,980 cells in 2 shards", "(1,515 bytes per cell)",
        "2,000 cells read", "1,980 cells kept 99.0%", "20 cells left out",
        "s3://cells/c.h5ad negative X X holds negative values Name the raw counts.",
        "empty_cell A cell without a single count. 20 0", "duplicate_barcode A cell name that occurs twice",
        "tissue 2 values blood 1,800 lung 180", "30 by symbol, 8 by Ensembl id, 2 unknown",
        "2 of 40 genes are not in the vocabulary",
    ):  # fmt: skip
        assert words in page.text, words


def test_the_page_fetches_nothing(report):
    html = render_page(report)
    images = [attributes["src"] or "" for tag, attributes in Page(html).tags if tag == "img"]
    assert len(images) == 3
    assert all(source.startswith("data:image/svg+xml;base64,") for source in images)
    for source in images:
        assert b"<svg" in base64.b64decode(source.partition(",")[2])
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "@import" not in html
    assert "url(" not in html


def test_equal_reports_are_equal_pages(report):
    assert render_page(report) == render_page(report)


def test_names_from_a_file_are_no_markup():
    evil = "<script>alert(1)</script>"
    uri = f"s3://cells/{evil}.h5ad"
    shown = profile(labels={evil: {evil: 990}}, findings={evil: evil})
    html = render_page(
        DataReport(evil, (FileReport(describe(uri), shown),), (Quarantined(uri, evil, evil, evil, evil),))
    )
    assert "<script" not in html
    assert Page(html).text.count("alert(1)") > 8


@pytest.mark.parametrize("num_files", [0, 1, 9, 400])
def test_any_number_of_files(num_files: int):
    files = tuple(FileReport(describe(f"/data/{n:03d}.h5ad"), profile(n % 3)) for n in range(num_files))
    page = Page(render_page(DataReport("Many", files)))
    rows = [attributes for tag, attributes in page.tags if tag == "details"]
    assert len(rows) == min(num_files, 300)
    assert ("and 100 more files" in page.text) == (num_files == 400)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_kept": 0, "dropped": {"empty_cell": 1000}, "depth": np.zeros(NUM_DEPTH_BINS, np.int64), "labels": {}},
        {"genes": None},
        {"num_read": 0, "num_kept": 0, "dropped": {}, "warned": {}, "findings": {}},
        {"depth": log2_histogram(np.array([1, 1, 2]), NUM_DEPTH_BINS)},
        {"depth": log2_histogram(np.full(9, 1e12), NUM_DEPTH_BINS)},
    ],
)
def test_odd_profiles(changes):
    report = DataReport("Odd", (FileReport(describe("/data/a.h5ad", num_entries=None), profile(**changes)),))
    Page(render_page(report))
    assert report_lines(report)


def test_every_rule_that_drops_has_words_and_a_colour():
    reasons = [*RuleConfig.model_fields, "filter", "other_side_of_split", "a_rule_of_tomorrow"]
    shown = profile(dropped=dict.fromkeys(reasons, 1))
    page = Page(render_page(DataReport("All", (FileReport(describe("/a.h5ad"), shown),))))
    for reason in reasons:
        assert page.text.count(reason) >= 3  # the legend, the table of rules, the file


def test_both_files_are_written(report, tmp_path):
    write_report(str(tmp_path / "report"), report)
    assert (tmp_path / "report/report.html").read_text() == render_page(report)
    data = json.loads((tmp_path / "report/report.json").read_text())
    assert (data["num_read"], data["num_kept"], data["dropped"]) == (2000, 1980, {"empty_cell": 20})
    assert data["corpus"]["digest"] == "d1935e57"
    assert [file["description"]["uri"] for file in data["files"]] == ["s3://cells/a.h5ad", "s3://cells/b.h5ad"]
    assert SourceProfile.from_json(data["files"][0]["profile"]).to_json() == report.files[0].profile.to_json()
    assert data["quarantined"][0]["rule"] == "negative"


def test_a_report_goes_to_s3_too(report, s3_uri):
    write_report(f"{s3_uri}/report", report)
    assert storage.read_bytes(f"{s3_uri}/report/report.html").decode() == render_page(report)


def test_the_lines_for_a_terminal(report):
    assert file_lines(report.files[0]) == [
        "s3://cells/a.h5ad",
        "  1,000 cells x 40 genes, h5ad layers/raw (raw counts), 1.23 MB",
        "  genes: human, symbol; 38 of 40 (95.0%) in the vocabulary (30 by symbol, 8 by Ensembl id)",
        "  cells: 990 of 1,000 kept (left out: 10 empty_cell); about 2,774 counts and 22 genes per cell",
        "  unknown_genes: 2 of 40 genes are not in the vocabulary",
        "  duplicate_barcode: 3 cells, kept with a warning",
        "  small_panel: 38 genes of the vocabulary: a targeted panel or a selection, not a whole transcriptome",
    ]
    assert report_lines(report)[-2:] == [
        "s3://cells/c.h5ad: refused (negative): X holds negative values Name the raw counts.",
        "3 files: 2 good, 1 refused; 1,980 of 2,000 cells read would be kept",
    ]


def test_merged_columns_and_lost_counts_are_listed_with_their_shares(caplog):
    overlap = GeneOverlap(
        9_000, 8_000, {"symbol": 8_000}, (), {"CD3D": ("CD3D", "CD3D-1")}, 1, "symbol", "human",
        older={"PLA2G2C": ("UBXN10-AS1",), "CD3D": ("T3D",)},
    )  # fmt: skip
    shown = profile(
        genes=overlap, sum_values=1000.0, lost_values=125.0, labels={"cell_type": {"T cell": 980, "Unassigned": 10}},
        column_values={"CD3D": (30.0, 10.0, 5.0), "PLA2G2C": (0.002,)},
    )  # fmt: skip
    file = FileReport(describe("/a.h5ad"), shown)
    expected = [
        "lost: 12.5% of the counts are in columns that are left out",
        "merged: CD3D is the sum of CD3D 75%, CD3D-1 25%: 4% of all counts",
        "not_merged: T3D is not added to CD3D, which has a column of its own: 0.5% of all counts",
        "not_merged: UBXN10-AS1 is not added to PLA2G2C, which has a column of its own: below 0.001% of all counts",
        "label: 'Unassigned' in obs column 'cell_type' reads like a missing label: 10 of 990 cells",
    ]
    assert [line.strip() for line in file_lines(file)][-5:] == expected
    report = DataReport("Merged", (file,))
    page = Page(render_page(report)).text
    with caplog.at_level("INFO"):
        log_report(report)
    for line in expected:
        assert f"/a.h5ad: {line}" in caplog.messages
        assert line.partition(": ")[2] in page


def test_expression_is_not_described_as_counts():
    file = FileReport(describe("/a.h5ad", value_kind="expression"), profile(sum_values=9.0, lost_values=1.0))
    text = "\n".join(file_lines(file))
    assert "about a sum of values of 2,774 and 22 genes per cell" in text
    assert "11.1% of the values are in columns" in text
    assert "counts per cell" not in Page(render_page(DataReport("Expression", (file,)))).text


def test_cells_whose_counts_are_not_restored_are_not_described_as_counts():
    mixed = profile(warned={"not_recoverable": 3}, sum_values=9.0, lost_values=1.0)
    for told, counters in ((True, mixed), (False, profile(sum_values=9.0, lost_values=1.0))):
        file = FileReport(describe("/a.h5ad", value_kind="recoverable"), counters)
        for text in ("\n".join(file_lines(file)), Page(render_page(DataReport("Mixed", (file,)))).text):
            assert ("counts restored for some cells only" in text) == told
            assert ("of the values are in columns" in text) == told


def test_many_merged_columns_are_cut_in_a_terminal_only():
    names = {f"G{n}": (f"G{n}", f"G{n}-1") for n in range(30)}
    overlap = GeneOverlap(9_000, 9_000, {"symbol": 9_000}, (), names, 30, "symbol", "human")
    shown = profile(genes=overlap, sum_values=1e3, column_values=dict.fromkeys(names, (1.0, 1.0)))
    file = FileReport(describe("/a.h5ad"), shown)
    lines = [line for line in file_lines(file) if line.startswith("  merged")]
    assert (len(lines), lines[-1]) == (9, "  merged: and 22 more, see the report")
    assert Page(render_page(DataReport("Many", (file,)))).text.count("is the sum of") == 30


def test_errors_on_record():
    error = CorpusError("/a.h5ad: X cannot be read (truncated).", remedy="Fetch it again.", key="X/data")
    record = Quarantined.of("/a.h5ad", error)
    assert record == Quarantined("/a.h5ad", "X/data", "malformed", "X cannot be read (truncated).", "Fetch it again.")
    assert refused_line(record) == (
        "/a.h5ad: refused (malformed at X/data): X cannot be read (truncated). Fetch it again."
    )
    assert Quarantined.of("/b", NotFoundError("/b: there is no such object.")).rule == "unreachable"


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (5e12, "5 TB")])
def test_sizes(size: int, text: str):
    assert size_text(size) == text
