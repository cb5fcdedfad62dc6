"""Remarks on one file from its profile: merged columns, lost counts, small panels and placeholder labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cytoray.corpus.checking.profile import GeneOverlap, SourceProfile
from cytoray.tokens.labels import is_placeholder

SMALL_PANEL = 5_000  # genes; a whole transcriptome has 12,000 and more even in a few hundred cells


def remarks(profile: SourceProfile, *, unit: str) -> list[tuple[str, str]]:
    """Name and text of each remark; ``unit`` is the plural of what the values are: counts, or values."""
    found = []
    genes = profile.genes
    if genes is not None:
        if profile.lost_values and profile.sum_values:
            text = (
                f"{_percent(profile.lost_values / profile.sum_values)} of the {unit} are in columns that are left out"
            )
            found.append(("lost", text))
        if 0 < genes.num_matched < SMALL_PANEL:
            text = "a targeted panel or a selection, not a whole transcriptome"
            found.append(("small_panel", f"{genes.num_matched:,} genes of the vocabulary: {text}"))
        found += _merges(profile, genes, unit)
    return [*found, *(("label", text) for text in _placeholders(profile.labels))]


def shortened(found: Iterable[tuple[str, str]], *, most: int) -> list[tuple[str, str]]:
    """The same remarks, of each kind that is listed gene by gene no more than ``most``, and how many there are more."""
    counts: dict[str, int] = {}
    kept = []
    for name, text in found:
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= most:
            kept.append((name, text))
    more = {name: count - most for name, count in counts.items() if count > most}
    return kept + [(name, f"and {count:,} more, see the report") for name, count in more.items()]


def _merges(profile: SourceProfile, genes: GeneOverlap, unit: str) -> Iterator[tuple[str, str]]:
    """One remark for each gene with several columns, and for each column left out, the largest first."""
    total = profile.sum_values or 1.0
    values = profile.column_values
    sums = {token: sum(values.get(token, ())[: len(names)]) for token, names in genes.duplicates.items()}
    for token in sorted(sums, key=lambda token: -sums[token]):
        pairs = zip(genes.duplicates[token], values.get(token, ()), strict=False)
        parts = ", ".join(f"{name} {_percent(value / (sums[token] or 1))}" for name, value in pairs)
        yield "merged", f"{token} is the sum of {parts}: {_percent(sums[token] / total)} of all {unit}"
    older = [
        (value, name, token)
        for token, names in genes.older.items()
        for name, value in zip(names, values.get(token, ())[-len(names) :], strict=False)
    ]
    for value, name, token in sorted(older, key=lambda column: -column[0]):
        share = f"{_percent(value / total)} of all {unit}"
        yield "not_merged", f"{name} is not added to {token}, which has a column of its own: {share}"


def _placeholders(labels: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Values of obs columns that read like a missing label."""
    for column, values in labels.items():
        total = sum(values.values())
        for value, count in values.items():
            if is_placeholder(value):
                yield f"{value!r} in obs column {column!r} reads like a missing label: {count:,} of {total:,} cells"


def _percent(share: float) -> str:
    """A share with two digits that matter: 12%, 0.034%."""
    if 0 < share < 1e-5:
        return "below 0.001%"
    return f"{100 * share:.3g}%" if share >= 0.1 else f"{100 * share:.2g}%"
