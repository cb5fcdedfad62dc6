"""Figures of a pipeline's stages for its page: what was made, and scores beside their baselines, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cytoray.operations.pipeline.planning import StagePlan
from cytoray.operations.pipeline.reading import is_evaluation
from cytoray.operations.pipeline.records import StageRecord
from cytoray.operations.pipeline.tasks import run_name
from cytoray.stages.assess import PREFIX
from cytoray.tasks import learning_stages

METRICS = ("macro_f1", "accuracy")  # of an evaluation, if no gate names one
SHORT = 12  # characters of a digest
OURS = "cytoray"


@dataclass(frozen=True)
class Figure:
    """A score of the model beside those that it is compared with."""

    stage: str
    metric: str
    value: str
    others: str
    verdict: str  # win, loss or tie; empty if nothing was compared


@dataclass(frozen=True)
class Link:
    """One link of the chain from the data to the service."""

    what: str
    name: str
    digest: str
    note: str


def find_figures(plans: list[StagePlan]) -> list[Figure]:
    """Return the scores of all stages that are done, in their order."""
    return [figure for one in plans if one.record is not None for figure in _figures(one.record, plans)]


def _figures(record: StageRecord, plans: list[StagePlan]) -> Iterator[Figure]:
    kind, result = record.key.kind, record.result
    if kind.startswith(PREFIX):
        for metric, row in list(result["metrics"].items())[:3]:  # the first is the headline
            others = {"simple method": row["baseline"]} if row["baseline"] is not None else {}
            yield Figure(record.stage, metric, _number(row["product"]), _join(others), row["verdict"] or "")
    elif is_evaluation(kind):
        yield from _evaluated(record.stage, result["scores"], _gate_metrics(record, plans))
    elif result.get("held_out"):
        rows = {name: dict(row) for name, row in result["held_out"].items()}
        first = next(iter(rows.values()))
        yield from _evaluated(record.stage, rows, list(first)[:2])
    elif kind in learning_stages() and result.get("best_validation_error") is not None:
        yield Figure(record.stage, "validation error", _number(result["best_validation_error"]), "", "")


def _gate_metrics(record: StageRecord, plans: list[StagePlan]) -> list[str]:
    """Return the metrics that gates read of an evaluation, then the usual ones."""
    gates = [one.key.settings.get("gate") for one in plans if one.key and one.stage.takes.get("scores") == record.stage]
    return list(dict.fromkeys([*(gate["metric"] for gate in gates if gate), *METRICS]))


def _evaluated(stage: str, rows: Mapping[str, Mapping[str, Any]], metrics: list[str]) -> Iterator[Figure]:
    name = OURS if OURS in rows else next(iter(rows))
    for metric in metrics:
        if not isinstance(rows[name].get(metric), int | float):
            continue
        others = {other: row[metric] for other, row in rows.items() if other != name and metric in row}
        yield Figure(stage, metric, _number(rows[name][metric]), _join(others), "")


def _join(others: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in others.items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def find_chain(plans: list[StagePlan]) -> list[Link]:
    """Return the chain from the source files to the version that serves, of the stages that are done."""
    return [link for one in plans if one.record is not None for link in _links(one.record)]


def _links(record: StageRecord) -> Iterator[Link]:
    kind, result = record.key.kind, record.result
    if kind == "ingest":
        files = record.key.sources
        name = next(iter(files)) if len(files) == 1 else f"{len(files):,} source files"
        yield Link("data", name, record.key.inputs["sources"][:SHORT], "names and versions")
        corpus = f"{result['corpus'].rstrip('/').rpartition('/')[2]}@{result['version']}"
        yield Link("corpus", corpus, result["manifest_digest"][:SHORT], f"{result['num_cells']:,} cells")
    elif kind in learning_stages():
        yield Link("model", run_name(record), result["bundle_digest"][:SHORT], f"{kind}, {result['step']:,} steps")
    elif kind == "promote":
        aliases = ", ".join(result["aliases"]) or "no alias"
        name = f"{result['model'].partition('@')[0].removeprefix('models:/')}/{result['version']}"
        yield Link("version", name, result["bundle_digest"][:SHORT], f"{aliases} when promoted")
    elif kind == "rollout":
        yield Link("service", result["url"], result["digest"][:SHORT], f"serves {result['model']}")


def find_reports(record: StageRecord) -> list[str]:
    """Return the URIs of the pages and plots of a stage."""
    result = record.result
    found = [result.get("report"), result.get("card")]
    if record.key.kind.startswith(PREFIX) and record.files:
        found += list(record.files)
    found += [uri for uri in record.files if not record.key.kind.startswith(PREFIX)]
    return [uri for uri in found if isinstance(uri, str)]
