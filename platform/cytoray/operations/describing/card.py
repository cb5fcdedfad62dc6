"""The model card: what a model is, its data, its figures beside simple methods, limits, licence and lineage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cytoray.operations.describing.models import ModelFacts
from cytoray.tasks import learning_stages

LICENCE_TAG = "licence"  # of the version in MLflow, set by the user
NOT_STATED = "not stated"
MAX_LABELS, MAX_SOURCES = 50, 50


def build_card(facts: ModelFacts, *, licence: str | None = None) -> dict[str, Any]:
    """Return the card as JSON data; what is unknown is null or left out, nothing is filled in."""
    version, run = facts.registered, facts.run
    return {
        "model": facts.traced.uri,
        "digest": facts.traced.digest,
        "aliases": list(version.aliases) if version is not None else [],
        "what": {
            "task": run.kind if run is not None else None,
            "shape": {key: facts.config.get(key) for key in ("width", "num_layers", "num_heads", "feedforward_width")},
            "num_parameters": facts.num_parameters,
            "num_genes": len([gene for gene in facts.genes if not gene.startswith("<")]),
            "labels": list(facts.labels),
            "tokenizer": facts.preprocessing,
            "attachments": sorted(name.removeprefix("attachments/") for name in facts.files if "/" in name),
        },
        "data": _data(facts),
        "figures": _figures(facts),
        "limits": list(_limits(facts)),
        "licence": licence or NOT_STATED,
        "lineage": _lineage(facts),
    }


def _data(facts: ModelFacts) -> dict[str, Any] | None:
    """The corpora of all runs that lead to the model, the last one's first."""
    if not facts.runs:
        return None
    corpora = []
    for run in reversed(facts.runs):
        manifest = run.corpus
        corpora.append(
            {
                "run": run.name,
                "stage": run.kind,
                "corpus": f"{manifest.name}@{manifest.version}",
                "digest": manifest.digest,
                "num_cells": manifest.num_cells,
                "values": manifest.values,
                "label_key": run.record.config.get("label_key"),
                "held_out": (run.record.config.get("validation") or {}).get("select"),
                "sources": [
                    {
                        "uri": source.uri,
                        "version": source.version,
                        "num_cells": source.num_cells,
                        "num_kept_cells": source.num_kept_cells,
                        "dropped": {rule: count for rule, count in source.dropped.items() if count},
                    }
                    for source in manifest.sources
                ],
            }
        )
    return {"corpora": corpora}


def _figures(facts: ModelFacts) -> dict[str, Any]:
    """Recorded assessments with their simple methods, scores of the run card, and the best validation."""
    assessments = facts.registered.assessments if facts.registered is not None else ()
    return {
        "assessments": [
            {
                "task": each.task,
                "metric": each.metric,
                "model": each.product,
                "simple_method": each.baseline,
                "verdict": each.verdict,
                "interval": each.interval,
                "data": each.data,
                "split": each.split,
            }
            for each in assessments
        ],
        "scores": facts.card.get("scores") or {},
        "validation": (facts.card.get("validation") or [None])[-1],
        "stability": facts.card.get("stability") or {},
    }


def _limits(facts: ModelFacts) -> Iterator[str]:
    """Sentences on what the model cannot do, or what nobody has shown."""
    assessed = facts.registered.assessments if facts.registered is not None else ()
    if not assessed:
        yield "No assessment is recorded: nobody has compared it with a simple method on this version."
    for each in assessed:
        if each.verdict == "loss":
            yield f"{each.task}: below the simple method ({each.line()})."
    if facts.labels and facts.config.get("num_labels"):
        yield f"It knows {len(facts.labels)} labels; a cell of another type gets one of these, or is called unassigned."
    if facts.corpus is not None:
        corpus, few = facts.corpus, 10_000
        if corpus.num_cells < few:
            yield f"It was trained on {corpus.num_cells:,} cells; expect it to learn little beyond these studies."
        if len(corpus.sources) == 1:
            yield "All its training cells come from one source, so differences between studies were not seen."
        if corpus.values == "expression":
            yield "Not all its training cells were counts."
    yield "Its gene vocabulary is human; genes outside it are ignored."


def _lineage(facts: ModelFacts) -> dict[str, Any]:
    """The chain from the model to its sources."""
    runs = [
        {
            "run": run.name,
            "stage": run.kind,
            "store": run.store,
            "num_steps": run.record.config["train"]["num_steps"],
            "seed": run.record.config["train"]["seed"],
            "config_digest": run.bundle.lineage.get("config_digest"),
            "corpus_manifest_digest": run.record.manifest_digest,
            "bundle_digest": run.bundle.digest,
            "started_from": run.initial,
            "environment": run.record.environment or run.versions,
        }
        for run in reversed(facts.runs)
    ]
    return {"bundle": facts.traced.lineage, "runs": runs, "unknown": facts.unknown or None}


def card_markdown(card: dict[str, Any]) -> Iterator[str]:
    """Format a card as Markdown, line by line."""
    what = card["what"]
    yield f"# {card['model'].removeprefix('models:/')}"
    yield ""
    yield _sentence(card)
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| model | `{card['model']}` |"
    yield f"| digest | `{card['digest']}` |"
    yield f"| aliases | {', '.join(card['aliases']) or 'none'} |"
    yield f"| licence | {card['licence']} |"
    for key, value in what["shape"].items():
        yield f"| {key.replace('_', ' ')} | {value} |"
    yield f"| genes | {what['num_genes']:,} |"
    if what["attachments"]:
        yield f"| attachments | {', '.join(what['attachments'])} |"
    if what["labels"]:
        more = f" and {len(what['labels']) - MAX_LABELS} more" if len(what["labels"]) > MAX_LABELS else ""
        yield ""
        yield f"Labels: {', '.join(what['labels'][:MAX_LABELS])}{more}."
    yield from _data_markdown(card["data"])
    yield from _figures_markdown(card["figures"])
    yield from ("", "## Limits", "")
    yield from (f"- {limit}" for limit in card["limits"])
    yield from _lineage_markdown(card)


def _sentence(card: dict[str, Any]) -> str:
    what = card["what"]
    task = what["task"]
    stages = learning_stages()
    about = stages[task].help.rstrip(".").lower() if task in stages else "origin unknown"
    size = "" if what["num_parameters"] is None else f" with {what['num_parameters']:,} parameters"
    return f"A transformer of the scGPT architecture{size} ({about})."


def _data_markdown(data: dict[str, Any] | None) -> Iterator[str]:
    yield from ("", "## Data", "")
    if data is None:
        yield "Unknown: the runs that led to this model cannot be found."
        return
    for corpus in data["corpora"]:
        labels = f", labels in `{corpus['label_key']}`" if corpus["label_key"] else ""
        held = f", held out `{corpus['held_out']}`" if corpus["held_out"] else ""
        yield (
            f"- `{corpus['stage']}` {corpus['run']}: {corpus['corpus']} ({corpus['digest'][:16]}), "
            f"{corpus['num_cells']:,} cells{labels}{held}"
        )
        for source in corpus["sources"][:MAX_SOURCES]:
            yield f"  - {source['uri']}: {source['num_kept_cells']:,} of {source['num_cells']:,} cells"
        if len(corpus["sources"]) > MAX_SOURCES:
            yield f"  - and {len(corpus['sources']) - MAX_SOURCES:,} more"


def _figures_markdown(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("", "## Figures beside simple methods", "")
    if figures["assessments"]:
        yield from ("| task | metric | model | simple method | verdict | data |", "|---|---|---:|---:|---|---|")
    for each in figures["assessments"]:
        values = [_number(each["model"]), _number(each["simple_method"]), each["verdict"] or ""]
        yield f"| {each['task']} | {each['metric']} | {' | '.join(values)} | {each['data']} ({each['split']}) |"
    if not figures["assessments"]:
        yield "No assessment is recorded on this version (`cytoray assess TASK --record`)."
    if figures["scores"]:
        yield ""
        names = sorted({name for row in figures["scores"].values() for name in row})
        yield f"| held-out cells | {' | '.join(names)} |"
        yield f"|---|{'---:|' * len(names)}"
        for row, values_by_name in figures["scores"].items():
            yield f"| {row} | {' | '.join(_number(values_by_name.get(name)) for name in names)} |"
    elif figures["validation"]:
        yield ""
        yield "Last validation: " + ", ".join(
            f"{name} {_number(value)}" for name, value in figures["validation"].items()
        )


def _lineage_markdown(card: dict[str, Any]) -> Iterator[str]:
    lineage = card["lineage"]
    yield from ("", "## Lineage", "")
    for run in lineage["runs"]:
        start = f" from `{run['started_from']}`" if run["started_from"] else ""
        yield (
            f"- `{run['stage']}` {run['run']}: {run['num_steps']:,} steps{start}, seed {run['seed']}, configuration "
            f"{(run['config_digest'] or '')[:16]}, corpus {run['corpus_manifest_digest'][:16]}, bundle "
            f"{run['bundle_digest'][:16]}"
        )
        if run["environment"]:
            yield f"  - {', '.join(f'{name} {value}' for name, value in run['environment'].items())}"
    if lineage["unknown"]:
        yield f"Incomplete: {lineage['unknown']}"
    if lineage["runs"]:
        yield from ("", f"Rebuild it and compare: `cytoray reproduce {card['model']}`.")


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float | int) else json.dumps(value)
