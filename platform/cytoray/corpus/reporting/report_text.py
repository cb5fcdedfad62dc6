"""The wording of a data report, its lines for a terminal and its log."""

from __future__ import annotations

import logging

from cytoray.corpus.checking.profile import SourceProfile, histogram_median
from cytoray.corpus.readers.base import SourceDescription
from cytoray.corpus.readers.finding import not_read_lines
from cytoray.corpus.reporting.remarks import remarks, shortened
from cytoray.corpus.reporting.report import DataReport, FileReport, Quarantined

logger = logging.getLogger(__name__)
MOST_LISTED = 8  # genes of one kind of remark in a terminal; all of them are in the report and the log
KIND_WORDS = {
    "counts": "raw counts",
    "near_counts": "near-integer counts, rounded",
    "recoverable": "log-normalised, counts restored",
    "expression": "expression, not counts",
    "negative": "scaled values",
}
UNRESTORED = "log-normalised, counts restored for some cells only"
HOW_WORDS = {"symbol": "symbol", "ensembl": "Ensembl id", "previous": "previous symbol", "alias": "alias"}


def report_lines(report: DataReport) -> list[str]:
    """The report as lines: a paragraph per file, a line per refused file, and a total."""
    lines = [line for file in report.files for line in file_lines(file)]
    lines += [refused_line(record) for record in report.quarantined]
    lines += not_read_lines(report.not_read)
    total = report.total
    good, bad = len(report.files), len(report.quarantined)
    lines.append(
        f"{good + bad:,} {'file' if good + bad == 1 else 'files'}: {good:,} good, {bad:,} refused; "
        f"{total.num_kept:,} of {total.num_read:,} cells read would be kept"
    )
    return lines


def file_lines(file: FileReport) -> list[str]:
    """The contents of one file and what would be left out of it."""
    description, profile = file.description, file.profile
    lines = [
        description.uri,
        f"  {description.num_cells:,} cells x {description.num_genes:,} genes, {description.format} "
        f"{description.matrix} ({kind_words(file)}), {size_text(description.num_bytes)}",
        f"  genes: {_gene_words(profile, description)}",
        f"  cells: {_cell_words(file)}",
    ]
    lines += [f"  {rule}: {text}" for rule, text in profile.findings.items()]
    lines += [f"  {rule}: {count:,} cells, kept with a warning" for rule, count in profile.warned.items()]
    if profile.num_rounded:
        lines.append(f"  rounded: {profile.num_rounded:,} values, to the nearest integer")
    lines += [f"  {name}: {text}" for name, text in shortened(remarks(profile, unit=file.unit), most=MOST_LISTED)]
    return lines + [f"  note: {note}" for note in description.notes]


def kind_words(file: FileReport) -> str:
    """The kind of values of a file, and what becomes of them."""
    return UNRESTORED if file.has_unrestored else KIND_WORDS[file.description.value_kind]


def log_report(report: DataReport) -> None:
    """Log the findings about each file, every merged column among them."""
    for file in report.files:
        uri, profile = file.description.uri, file.profile
        found = [*profile.findings.items(), *remarks(profile, unit=file.unit)]
        found += [("note", note) for note in file.description.notes]
        for name, text in found:
            logger.info("%s: %s: %s", uri, name, text)


def refused_line(record: Quarantined) -> str:
    """One line for a file that was refused."""
    place = f" at {record.key}" if record.key and record.key not in record.reason else ""
    return f"{record.uri}: refused ({record.rule}{place}): {record.reason} {record.remedy}".rstrip()


def size_text(num_bytes: int) -> str:
    """A number of bytes with a unit."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _gene_words(profile: SourceProfile, description: SourceDescription) -> str:
    words = f"{description.species}, {description.id_type}"
    if profile.genes is None:
        return words
    how = [f"{count:,} by {HOW_WORDS[kind]}" for kind, count in profile.genes.how.items() if kind in HOW_WORDS]
    return (
        f"{words}; {profile.genes.num_matched:,} of {profile.genes.num_genes:,} ({profile.genes.share:.1%}) in the "
        f"vocabulary ({', '.join(how) or 'none'})"
    )


def _cell_words(file: FileReport) -> str:
    profile = file.profile
    words = f"{profile.num_kept:,} of {profile.num_read:,} kept"
    if profile.dropped:
        words += f" (left out: {', '.join(f'{count:,} {rule}' for rule, count in profile.dropped.items())})"
    depth, genes = histogram_median(profile.depth), histogram_median(profile.genes_per_cell)
    amount = f"{depth:,.0f} counts" if file.unit == "counts" else f"a sum of values of {depth:,.0f}"
    return f"{words}; about {amount} and {genes:,.0f} genes per cell"
