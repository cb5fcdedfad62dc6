"""Record the report of an assessment on the model version that it was made with."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytoray import storage
from cytoray.errors import NotFoundError, RegistryError
from cytoray.failpoints import failpoint
from cytoray.registry.artifacts import RegisteredVersion
from cytoray.registry.models import describe, find_model
from cytoray.registry.recorded import RECORD_TAG, RecordedAssessment
from cytoray.tracking.server import TrackingConfig, connect, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient

FIGURE_TAG = "assessment."  # then task and metric: for people, and for searches in MLflow
REPORT, PAGE = "report.json", "report.html"


def record_assessment(version: RegisteredVersion, folder: str, *, tracking: TrackingConfig) -> RegisteredVersion:
    """Store report.json and report.html of ``folder`` with the version's run, and their figures as tags of the version.

    A report on the same data with the same split replaces the earlier one. Raises NotFoundError if there is no report,
    RegistryError if it was made with another model, or without one.
    """
    files = {name: _read(folder, name) for name in (REPORT, PAGE)}
    report = _parse(folder, files[REPORT])
    _check_model(version, report, folder)
    identity = json.dumps([report["task"], _digests(report["data"]), report["split"]])
    name = f"{report['task']}.{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    place = f"assessments/{version.digest[:16]}/{name}"
    record = _record(report, place, hashlib.sha256(files[REPORT]).hexdigest())
    client = connect(tracking.uri)
    with explained(tracking.uri):
        _upload(client, version, files, place)
        failpoint("record.after_upload")
        for key, value in _figures(report).items():
            client.set_model_version_tag(version.name, str(version.version), key, value)
            failpoint("record.after_figure")
        client.set_model_version_tag(version.name, str(version.version), RECORD_TAG + name, record.to_tag())
        failpoint("record.after_record")
        return describe(client.get_model_version(version.name, str(version.version)), find_model(client, version.name))


def _read(folder: str, name: str) -> bytes:
    data = storage.find_bytes(storage.join(folder, name))
    if data is None:
        raise NotFoundError(
            f"{folder} has no {name}.", remedy="Name the folder that `cytoray assess` wrote with --out.", uri=folder
        )
    return data


def _parse(folder: str, data: bytes) -> dict[str, Any]:
    """Return the report; RegistryError if it is not one of an assessment."""
    try:
        report = json.loads(data)
    except ValueError:
        report = None
    if not isinstance(report, dict) or not {"task", "metrics", "data", "split", "model_digest"} <= report.keys():
        raise RegistryError(
            f"{folder}/{REPORT} is not the report of an assessment.", remedy="Assess the model with `cytoray assess`."
        )
    return report


def _check_model(version: RegisteredVersion, report: dict[str, Any], folder: str) -> None:
    label = f"{version.name} version {version.version}"
    if version.run_id is None or not version.digest:
        raise RegistryError(f"{label} was not registered by cytoray.", remedy="Register the bundle with cytoray.")
    made_with = report["model_digest"]
    if made_with == version.digest:
        return
    seen = "without a model" if made_with is None else f"with the model {report['model']} (digest {made_with[:16]})"
    raise RegistryError(
        f"The report in {folder} was made {seen}, but {label} has the digest {version.digest[:16]}.",
        remedy=f"Assess this version: cytoray assess {report['task']} --model models:/{version.name}/{version.version}",
        expected=version.digest,
        seen=made_with,
    )


def _digests(data: dict[str, Any]) -> list[str]:
    """Return the digests of the cells and, if there is one, of the query."""
    query = data.get("query")
    return [data["digest"], *([query["digest"]] if query else [])]


def _record(report: dict[str, Any], place: str, digest: str) -> RecordedAssessment:
    metric, row = next(iter(report["metrics"].items()))  # the first is the headline
    interval = row["interval"]
    return RecordedAssessment(
        task=report["task"],
        metric=metric,
        product=row["product"],
        baseline=row["baseline"],
        interval=None if interval is None else (interval[0], interval[1]),
        verdict=row["verdict"],
        data=report["data"]["uri"],
        split=report["split"],
        report=place,
        report_digest=digest,
    )


def _figures(report: dict[str, Any]) -> dict[str, str]:
    """Return a tag for each metric's product, with its baseline and verdict if it has them."""
    tags = {}
    for metric, row in report["metrics"].items():
        if row["product"] is None:
            continue
        name = f"{FIGURE_TAG}{report['task']}.{metric}"
        tags[name] = repr(row["product"])
        if row["baseline"] is not None:
            tags[f"{name}.baseline"] = repr(row["baseline"])
        if row["verdict"] is not None:
            tags[f"{name}.verdict"] = row["verdict"]
    return tags


def _upload(client: MlflowClient, version: RegisteredVersion, files: dict[str, bytes], place: str) -> None:
    with tempfile.TemporaryDirectory(prefix="cytoray-report-") as scratch:
        for name, data in files.items():
            (Path(scratch) / name).write_bytes(data)
        assert version.run_id is not None, "registered by cytoray"
        client.log_artifacts(version.run_id, scratch, place)
