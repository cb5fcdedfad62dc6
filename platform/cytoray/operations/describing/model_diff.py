"""How two models differ: shape, settings, data, vocabulary, labels, figures, files and, if they fit, weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cytoray.corpus.version_text import describe_diff as describe_corpora
from cytoray.corpus.versions import diff as diff_corpora
from cytoray.operations.describing.models import WEIGHTS, ModelFacts
from cytoray.stages.settings import flatten

MAX_NAMES = 10
PLACES = ("store", "tracking", "cache_folder", "allow_changes")  # of a run's configuration


def diff_models(first: ModelFacts, second: ModelFacts) -> dict[str, Any]:
    """Return the differences as JSON data; a section that is null cannot be compared, an empty one does not differ."""
    return {
        "models": [first.traced.uri, second.traced.uri],
        "digests": [first.traced.digest, second.traced.digest],
        "same": first.traced.digest == second.traced.digest,
        "same_weights": first.files[WEIGHTS] == second.files[WEIGHTS],
        "config": _pairs(first.config, second.config),
        "preprocessing": _pairs(first.preprocessing, second.preprocessing),
        "training": _training(first, second),
        "data": _data(first, second),
        "vocabulary": _names(first.genes, second.genes),
        "labels": _names(first.labels, second.labels),
        "metrics": _metrics(first, second),
        "weights": _weights(first, second),
        "files": _files(first, second),
    }


def _pairs(one: Any, two: Any) -> dict[str, list[Any]]:
    """Return the leaves that differ, by key path."""
    left, right = dict(flatten(one)), dict(flatten(two))
    keys = dict.fromkeys([*left, *right])
    return {key: [left.get(key), right.get(key)] for key in keys if left.get(key) != right.get(key)}


def _training(first: ModelFacts, second: ModelFacts) -> dict[str, list[Any]] | None:
    """Return the settings of the runs that differ, locations left out."""
    if first.run is None or second.run is None:
        return None
    one, two = (
        {key: value for key, value in facts.run.record.config.items() if key not in PLACES}
        for facts in (first, second)
        if facts.run is not None
    )
    return _pairs(one, two)


def _data(first: ModelFacts, second: ModelFacts) -> dict[str, Any] | None:
    """Compare the corpora that they were trained on."""
    if first.corpus is None or second.corpus is None:
        return None
    found = diff_corpora(first.corpus, second.corpus)
    corpora = [f"{corpus.name}@{corpus.version}" for corpus in (first.corpus, second.corpus)]
    return {**vars(found), "corpora": corpora, "same_cells": found.same_cells, "lines": list(describe_corpora(found))}


def _names(one: Iterable[str], two: Iterable[str]) -> dict[str, Any]:
    """Compare names whose order is their number."""
    left, right = list(one), list(two)
    there, here = set(left), set(right)
    return {
        "num": [len(left), len(right)],
        "removed": [name for name in left if name not in here],
        "added": [name for name in right if name not in there],
        "same_order": left == right,
    }


def _metrics(first: ModelFacts, second: ModelFacts) -> dict[str, list[float | None]]:
    """Return every figure that one of them has, side by side."""
    one, two = _figures(first), _figures(second)
    return {name: [one.get(name), two.get(name)] for name in sorted(one.keys() | two.keys())}


def _figures(facts: ModelFacts) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in facts.registered.assessments if facts.registered is not None else ():
        for name, value in ((each.metric, each.product), (f"{each.metric} of the simple method", each.baseline)):
            if value is not None:
                found[f"{each.task} {name}"] = value
    for row, values in (facts.card.get("scores") or {}).items():
        found |= {f"held-out {row} {name}": value for name, value in values.items() if value is not None}
    validation = facts.card.get("validation") or []
    if validation:
        found |= {f"validation {name}": value for name, value in validation[-1].items() if value is not None}
    return found


def _weights(first: ModelFacts, second: ModelFacts) -> dict[str, Any] | None:
    """Compare the names and shapes of the weights."""
    if not first.shapes or not second.shapes:
        return None
    shared = first.shapes.keys() & second.shapes.keys()
    return {
        "num_parameters": [first.num_parameters, second.num_parameters],
        "removed": sorted(first.shapes.keys() - shared),
        "added": sorted(second.shapes.keys() - shared),
        "reshaped": {
            name: [first.shapes[name], second.shapes[name]]
            for name in sorted(shared)
            if first.shapes[name] != second.shapes[name]
        },
    }


def _files(first: ModelFacts, second: ModelFacts) -> dict[str, list[str | None]]:
    names = sorted(first.files.keys() | second.files.keys())
    pairs = {name: [first.files.get(name), second.files.get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def diff_lines(found: dict[str, Any]) -> Iterator[str]:
    """Describe the differences in lines for people."""
    yield f"{found['models'][0]}  {found['digests'][0][:16]}"
    yield f"{found['models'][1]}  {found['digests'][1][:16]}"
    if found["same"]:
        yield "the same bundle"
        return
    yield f"weights      {'equal' if found['same_weights'] else 'different'}"
    for title in ("config", "preprocessing", "training"):
        if found[title] is None:
            yield f"{title:<12} unknown: a run cannot be found"
        for key, (one, two) in (found[title] or {}).items():
            yield f"{title:<12} {key}: {one} -> {two}"
    if found["data"] is not None:
        yield f"data         {' -> '.join(found['data']['corpora'])}"
        yield from (f"  {line}" for line in found["data"]["lines"])
    else:
        yield "data         unknown: a run cannot be found"
    for title in ("vocabulary", "labels"):
        yield from _name_lines(title, found[title])
    if (weights := found["weights"]) is not None:
        one, two = weights["num_parameters"]
        yield f"parameters   {one:,} -> {two:,}"
        yield from (f"  {name}: {old} -> {new}" for name, (old, new) in weights["reshaped"].items())
        yield from (f"  - {name}" for name in weights["removed"])
        yield from (f"  + {name}" for name in weights["added"])
    for name, (old, new) in found["metrics"].items():
        yield f"metric       {name}: {_number(old)} -> {_number(new)}"
    for name, (old, new) in found["files"].items():
        yield f"file         {name}: {(old or 'missing')[:16]} -> {(new or 'missing')[:16]}"


def _name_lines(title: str, names: dict[str, Any]) -> Iterator[str]:
    if not names["removed"] and not names["added"]:
        if not names["same_order"]:
            yield f"{title:<12} the same in another order"
        return
    yield f"{title:<12} {names['num'][0]:,} -> {names['num'][1]:,}"
    for sign, changed in (("-", names["removed"]), ("+", names["added"])):
        if changed:
            more = f" and {len(changed) - MAX_NAMES:,} more" if len(changed) > MAX_NAMES else ""
            yield f"  {sign} {', '.join(changed[:MAX_NAMES])}{more}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
