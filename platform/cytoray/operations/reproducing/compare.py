"""Compare what was rebuilt with the original: corpora by content, bundles file by file, weights bit by bit."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load as load_tensors

from cytoray import storage
from cytoray.corpus.manifest import CorpusManifest
from cytoray.operations.reproducing.lineage import listing_of

WEIGHTS, LINEAGE = "model.safetensors", "lineage.json"
# Keys of a bundle's lineage that name places, code and the rebuilt parent: they differ in every reproduction.
OWN_KEYS = frozenset({"checkpoint", "git_revision", "code_version", "parent_bundle_digest", "corpus_manifest_digest"})


@dataclass(frozen=True)
class Comparison:
    """One thing that was rebuilt, beside the original.

    Attributes:
        what: Corpus or bundle, by its name.
        expected: Digest of the original.
        seen: Digest of what was rebuilt.
        equal: Whether all that results depend on is equal, bit by bit.
        differences: What differs, in words; also what may, such as places in a lineage.
        max_difference: Largest absolute difference of two weights; None if none was computed.
    """

    what: str
    expected: str
    seen: str
    equal: bool
    differences: tuple[str, ...] = ()
    max_difference: float | None = None


def compare_corpora(original: CorpusManifest, rebuilt: CorpusManifest) -> Comparison:
    """Compare two versions: equal if they contain the same cells in the same order, wherever their sources lie."""
    what = f"corpus {original.name}@{original.version}"
    if original.digest == rebuilt.digest:
        return Comparison(what, original.digest, rebuilt.digest, equal=True)
    differences = []
    for name in ("num_cells", "vocabulary_digest", "values", "binning", "n_bins", "seed"):
        one, two = getattr(original, name), getattr(rebuilt, name)
        if one != two:
            differences.append(f"{name} {one}, rebuilt {two}")
    sources = {source.uri: source for source in rebuilt.sources}
    for source in original.sources:
        other = sources.get(source.uri)
        if other is None:
            differences.append(f"source {source.uri} is not in it")
        elif other != source:
            differences.append(f"the record of source {source.uri}")
    equal = original.content_digest == rebuilt.content_digest
    if not equal:
        differences.append("the cells or their order")
    return Comparison(what, original.content_digest, rebuilt.content_digest, equal, tuple(differences))


def compare_bundles(what: str, original: str, rebuilt: str) -> Comparison:
    """Compare two bundles by their listings; equal if all files are but the lineage, of which places may differ.

    Attachments that only the original has were attached afterwards, and do not count.
    """
    one, two = listing_of(original), listing_of(rebuilt)
    differences, equal, largest = [], True, None
    for name in sorted(one.keys() | two.keys()):
        if one.get(name) == two.get(name):
            continue
        if name == LINEAGE:
            lines, same = _compare_lineages(original, rebuilt)
            differences += lines
            equal = equal and same
        elif name not in two and name.startswith("attachments/"):
            differences.append(f"{name} was attached afterwards, and not rebuilt")
        else:
            equal = False
            differences.append(f"{name} is only in one of them" if (name in one) != (name in two) else name)
            if name == WEIGHTS:
                largest = _largest_difference(original, rebuilt)
    return Comparison(what, one[WEIGHTS], two[WEIGHTS], equal, tuple(differences), largest)


def _compare_lineages(original: str, rebuilt: str) -> tuple[list[str], bool]:
    """Describe the keys that differ, and return whether all of them may."""
    one, two = (_load_json(storage.join(uri, LINEAGE)) for uri in (original, rebuilt))
    keys = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
    own = [key for key in keys if key in OWN_KEYS]
    others = [f"lineage: {key} {one.get(key)}, rebuilt {two.get(key)}" for key in keys if key not in OWN_KEYS]
    lines = [f"lineage: {', '.join(own)} (places, code and digests of what was rebuilt)"] if own else []
    return [*others, *lines], not others


def _load_json(uri: str) -> dict[str, Any]:
    return dict(json.loads(storage.read_bytes(uri)))


def _largest_difference(original: str, rebuilt: str) -> float:
    """Return the largest absolute difference of two weights; infinite if the tensors do not have the same shapes."""
    one, two = (load_tensors(storage.read_bytes(storage.join(uri, WEIGHTS))) for uri in (original, rebuilt))
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (one, two)]
    if shapes[0] != shapes[1]:
        return math.inf
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one if one[name].numel())
