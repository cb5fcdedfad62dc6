"""Render a data report as a page: every number becomes text here, and the template only places it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cytoray import storage
from cytoray.corpus.checking.profile import GeneOverlap, SourceProfile, histogram_median
from cytoray.corpus.config import RuleConfig
from cytoray.corpus.reporting.remarks import remarks
from cytoray.corpus.reporting.report import HTML_NAME, JSON_NAME, DataReport, FileReport
from cytoray.corpus.reporting.report_plots import line_colours, plot_bins, plot_log_histograms
from cytoray.corpus.reporting.report_text import HOW_WORDS, kind_words, size_text
from cytoray.pages.frame import load_template
from cytoray.tokens.vocabulary import GeneVocabulary

MOST_FILES = 300  # rows of the tables; all of them are in report.json
MOST_LABELS = 6  # columns of obs shown for all files together
MOST_VALUES = 12  # of each
TOP_GENES = 24
OTHER_REASONS = {
    "filter": "Left out by a filter expression.",
    "other_side_of_split": "On the other side of the train / held-out split.",
}
_HOW_COLOURS = {"symbol": "#3f90da", "ensembl": "#832db6", "previous": "#ffa90e", "alias": "#b9ac70"}
_RULE_COLOURS = ("#bd1f01", "#e76300", "#ffa90e", "#832db6", "#a96b59", "#b9ac70", "#717581", "#94a4a2")
_KEPT_COLOUR, _UNKNOWN_COLOUR = "#3f90da", "#d5dae0"
# The most informative columns come first.
_LABEL_ORDER = ("tissue", "cell_type", "disease", "assay", "development_stage", "sex", "donor", "batch", "suspension")


@dataclass(frozen=True)
class Part:
    """One coloured part of a bar."""

    name: str
    count: int
    percent: float
    colour: str


def write_report(folder_uri: str, report: DataReport) -> None:
    """Write ``report.html`` (one file, nothing fetched from elsewhere) and ``report.json`` into a folder or prefix."""
    storage.write_bytes(storage.join(folder_uri, JSON_NAME), json.dumps(report.to_json(), indent=1).encode())
    storage.write_bytes(storage.join(folder_uri, HTML_NAME), render_page(report).encode())


def render_page(report: DataReport) -> str:
    """The report as one HTML page."""
    return load_template("cytoray.corpus.reporting", "report.html.j2", number=_number, size=size_text).render(
        report=report,
        tiles=_tiles(report),
        files=[_file_row(file) for file in report.files[:MOST_FILES]],
        num_hidden=max(0, len(report.files) - MOST_FILES),
        plots=_plots(report),
        legend=line_colours([_short_name(file.description.uri) for file in report.files]),
        not_read=report.not_read[:MOST_FILES],
        rules=_rules(report.total),
        rule_colours=_rule_colours(report.total),
        how_colours={HOW_WORDS[how]: colour for how, colour in _HOW_COLOURS.items()} | {"unknown": _UNKNOWN_COLOUR},
        kept_colour=_KEPT_COLOUR,
        depth_words=_depth_words(report),
        labels=_labels(report.total.labels),
        top_genes=_top_genes(report.total),
    )


def _tiles(report: DataReport) -> list[tuple[str, str, str]]:
    """The figures on top: value, name, a remark."""
    total, refused = report.total, len(report.quarantined)
    num_bytes = sum(file.description.num_bytes for file in report.files)
    share = _percent(total.num_kept / total.num_read) if total.num_read else ""
    tiles = [
        (_number(len(report.files)), "files read" if len(report.files) != 1 else "file read", size_text(num_bytes)),
        (_number(total.num_read), "cells read", ""),
        (_number(total.num_kept), "cells kept", share),
        (_number(sum(total.dropped.values())), "cells left out", ""),
        (_number(total.num_detected), "genes detected", "in some cell"),
        (_number(round(histogram_median(total.depth))), _depth_words(report), "median, ± 5 %"),
        (_number(round(histogram_median(total.genes_per_cell))), "genes per cell", "median, ± 5 %"),
    ]
    if refused:
        tiles.append((_number(refused), "refused", "see below"))
    if report.not_read:
        tiles.append((_number(len(report.not_read)), "not read", "see below"))
    return tiles


def _depth_words(report: DataReport) -> str:
    """The sum of a cell's values, by the name that is right for all files."""
    units = {file.unit for file in report.files}
    return "counts per cell" if units <= {"counts"} else "sum of values per cell"


def _file_row(file: FileReport) -> dict[str, Any]:
    """The values of one file in the tables."""
    description, profile = file.description, file.profile
    colours = _rule_colours(profile)
    parts = {"kept": profile.num_kept, **profile.dropped}
    return {
        "name": _short_name(description.uri),
        "uri": description.uri,
        "description": description,
        "profile": profile,
        "kind": kind_words(file),
        "cells": _parts(parts, {"kept": _KEPT_COLOUR, **colours}),
        "overlap": _overlap(profile.genes),
        "genes": profile.genes,
        "depth": round(histogram_median(profile.depth)),
        "genes_per_cell": round(histogram_median(profile.genes_per_cell)),
        "findings": _findings(file),
        "labels": _labels(profile.labels, most=24),
    }


def _findings(file: FileReport) -> list[tuple[str, str]]:
    """Findings about a whole file, cells kept with a warning, remarks and notes."""
    profile = file.profile
    found = list(profile.findings.items())
    found += [(rule, f"{count:,} cells kept with a warning") for rule, count in profile.warned.items()]
    if profile.num_rounded:
        found.append(("rounded", f"{profile.num_rounded:,} values rounded to the nearest integer"))
    return [*found, *remarks(profile, unit=file.unit), *(("note", note) for note in file.description.notes)]


def _overlap(genes: GeneOverlap | None) -> list[Part]:
    """A file's genes by the kind of name that matched."""
    if genes is None:
        return []
    counts = {HOW_WORDS.get(how, how): genes.how.get(how, 0) for how in (*HOW_WORDS, "unknown")}
    colours = {HOW_WORDS[how]: colour for how, colour in _HOW_COLOURS.items()}
    return _parts(counts, {**colours, "unknown": _UNKNOWN_COLOUR})


def _parts(counts: Mapping[str, int], colours: Mapping[str, str]) -> list[Part]:
    total = sum(counts.values())
    return [Part(name, count, 100 * count / total, colours[name]) for name, count in counts.items() if count]


def _rule_colours(profile: SourceProfile) -> dict[str, str]:
    """A colour for each reason to leave cells out, the same in every report."""
    places = {rule: place for place, rule in enumerate([*RuleConfig.model_fields, *OTHER_REASONS])}
    return {rule: _RULE_COLOURS[places.get(rule, len(places)) % len(_RULE_COLOURS)] for rule in profile.dropped}


def _rules(total: SourceProfile) -> list[tuple[str, str, int, int]]:
    """Rules that cells broke: name, description, cells left out, cells kept with a warning."""
    words = {name: str(info.description) for name, info in RuleConfig.model_fields.items()} | OTHER_REASONS
    broken = [rule for rule in {**words, **total.dropped, **total.warned} if rule in {**total.dropped, **total.warned}]
    return [(rule, words.get(rule, ""), total.dropped.get(rule, 0), total.warned.get(rule, 0)) for rule in broken]


def _plots(report: DataReport) -> list[tuple[str, str, str]]:
    """Title, remark and image of each plot."""
    if not report.total.num_kept:
        return []
    names = [f"{number} {_short_name(file.description.uri)}" for number, file in enumerate(report.files)]
    depths = dict(zip(names, (file.profile.depth for file in report.files), strict=True))
    genes = dict(zip(names, (file.profile.genes_per_cell for file in report.files), strict=True))
    remark = "filled: all files" if line_colours(names) and len(names) > 1 else ""
    sample = f"of {report.total.num_binned:,} sampled cells; ties drawn at random"
    return [
        ("Depth", remark, plot_log_histograms(depths, _depth_words(report))),
        ("Genes per cell", remark, plot_log_histograms(genes, "expressed genes per cell")),
        ("Bins", sample, plot_bins(report.total.bins)),
    ]


def _labels(
    labels: Mapping[str, Mapping[str, int]], *, most: int = MOST_LABELS
) -> list[tuple[str, int, list[Part], int]]:
    """Columns of obs: name, number of values, the most frequent values, values not shown."""

    def rank(name: str) -> tuple[bool, int, int, str]:
        """Sort key of a column: known names first, constants last."""
        place = next((i for i, word in enumerate(_LABEL_ORDER) if name.startswith(word)), len(_LABEL_ORDER))
        return len(labels[name]) == 1, place, -sum(labels[name].values()), name

    shown = []
    for name in sorted((name for name in labels if labels[name]), key=rank)[:most]:
        counts = sorted(labels[name].items(), key=lambda item: (-item[1], item[0]))
        largest = max(1, counts[0][1])
        parts = [Part(value, count, 100 * count / largest, _KEPT_COLOUR) for value, count in counts[:MOST_VALUES]]
        shown.append((name, len(counts), parts, len(counts) - len(parts)))
    return shown


def _top_genes(total: SourceProfile) -> Sequence[tuple[str, str]]:
    """The most widely expressed genes, and the share of cells that express them."""
    tokens = GeneVocabulary.load_default().tokens
    return [(tokens[gene], _percent(count / max(1, total.num_kept))) for gene, count in total.top_genes(TOP_GENES)]


def _short_name(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def _number(value: float) -> str:
    return f"{value:,}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 1 else f"{share:.0%}"
