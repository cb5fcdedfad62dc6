"""Versions of corpora in words: what ``cytoray data show`` and ``diff`` print."""

from __future__ import annotations

from collections.abc import Iterator

from cytoray import storage
from cytoray.corpus.manifest import CorpusManifest, corpus_uri
from cytoray.corpus.versions import CorpusDiff


def describe_corpus(store: str, manifest: CorpusManifest) -> Iterator[str]:
    """Describe a version in lines for people."""
    yield f"corpus      {manifest.name}@{manifest.version} in {store}"
    yield f"digest      {manifest.digest}"
    yield f"content     {manifest.content_digest}"
    bytes_each, genes_each = (
        total / max(1, manifest.num_cells) for total in (manifest.num_bytes, manifest.num_entries)
    )
    yield f"cells       {manifest.num_cells:,} ({bytes_each:,.0f} bytes and {genes_each:,.0f} genes each)"
    yield f"shards      {len(manifest.shards):,} ({manifest.num_bytes / 1e6:,.1f} MB)"
    yield f"values      {manifest.values}, bins {manifest.binning.replace('_', ' ')}, seed {manifest.seed}"
    for name, features in manifest.modalities.items():
        yield f"modality    {name}: {len(features):,} features, {manifest.modality_values[name]}"
    yield f"obs         {', '.join(f'{name} ({kind})' for name, kind in manifest.obs_columns.items())}"
    for increment in manifest.increments:
        where = storage.join(corpus_uri(store, manifest.name), increment.report_key or "")
        yield (
            f"version {increment.version:>3} {increment.num_cells:,} cells of {increment.num_sources} sources in "
            f"{increment.num_shards} shards; report {where}"
        )
    for source in manifest.sources:
        lost = ", ".join(f"{count:,} {rule}" for rule, count in source.dropped.items() if count)
        yield (
            f"source      {source.uri}: {source.num_kept_cells:,} of {source.num_cells:,} cells"
            + (f" (dropped: {lost})" if lost else "")
            + f", {source.num_matched_genes:,} of {source.num_genes:,} genes, {source.value_kind}"
        )
    for record in manifest.quarantined:
        yield f"left out    {record.uri} ({record.rule}): {record.reason}"


def describe_diff(difference: CorpusDiff) -> Iterator[str]:
    """Describe the differences of two versions in lines for people."""
    if difference.same_cells:
        yield "the same cells in the same order"
    (cells, more_cells), (size, more_size) = difference.num_cells, difference.num_bytes
    yield f"cells       {cells:,} -> {more_cells:,} ({more_cells - cells:+,})"
    yield f"bytes       {size:,} -> {more_size:,} ({more_size - size:+,})"
    yield (
        f"shards      {difference.num_shared_shards} shared, {len(difference.added_shards)} added, "
        f"{len(difference.removed_shards)} removed"
    )
    for sign, uris in (
        ("+", difference.added_sources),
        ("-", difference.removed_sources),
        ("~", difference.changed_sources),
    ):
        for uri in uris:
            yield f"source {sign}    {uri}"
    for name, (one, two) in difference.settings.items():
        yield f"{name:<11} {one} -> {two}"
