"""Assess a task: train and evaluate it on anyone's files, and write the report.

An assessment is a stage like others: one that was killed continues, and a rerun finds its report and returns it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import Any

from cytoray import storage
from cytoray.config import build_from
from cytoray.errors import ConfigError
from cytoray.evaluation.assessment import PAGE, REPORT, Assessment, find_report, write_report
from cytoray.evaluation.assessment_page import render_page
from cytoray.registry.artifacts import RegisteredVersion
from cytoray.registry.assessments import record_assessment
from cytoray.registry.models import find_version
from cytoray.registry.opening import REGISTERED, resolve_tracking
from cytoray.stages.assess_key import find_key
from cytoray.tasks import task_assessments
from cytoray.tasks.assessing import AssessConfig, with_default_model
from cytoray.tasks.pieces import Pieces
from cytoray.tracking import TrackingConfig

PREFIX = "assess-"  # of the kind of a configuration
PIECES = ".pieces"  # folder in `out`
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assessed:
    """An assessment, the URIs of its files by name, and the model version that it was recorded on, if any."""

    assessment: Assessment
    files: dict[str, str]
    recorded: RegisteredVersion | None = None


def assess(task: str, **settings: Any) -> dict[str, Any]:
    """Assess a task with the keys of its configuration, and return the report as JSON data.

    ``cytoray.assess("annotation", data="cells.h5ad", label_key="cell_type", out="report")`` writes report.html and
    report.json into ``out``; called again with the same arguments it returns that report (unless ``again=True``), or
    continues. Raises ConfigError for an unknown task or key, CorpusError for cells that cannot be used.
    """
    known = task_assessments()
    if task not in known:
        raise ConfigError(f"Unknown task {task!r}.", remedy=f"Known are {', '.join(known)}.")
    config = build_from(known[task].config.load(), settings, source=f"assess({task!r})")
    return run_assessment(task, config).assessment.as_dict()


def run_assessment(task: str, config: AssessConfig) -> Assessed:
    """Assess a task and write its report, or return the report of the same data, model and settings in ``out``.

    Finished pieces are kept in ``out`` until the report is written. With ``record`` the report is also recorded on the
    model version, which raises RegistryError if the alias has moved to another version meanwhile.
    """
    check_out(config.out)  # before anything is read
    config, note = with_default_model(config)
    tracking, version = _find_version(config) if config.record else (None, None)
    assessed = _assess(task, config, note)
    if tracking is None or version is None:
        return assessed
    return replace(assessed, recorded=record_assessment(version, config.out, tracking=tracking))


def _find_version(config: AssessConfig) -> tuple[TrackingConfig, RegisteredVersion]:
    """Find the registered version that the assessment is recorded on."""
    if config.model is None or not config.model.startswith(REGISTERED):
        raise ConfigError(
            "record: only a registered model has a version to record the report on.",
            remedy="Name it with --model models:/NAME@ALIAS or models:/NAME/VERSION; see `cytoray models ls`.",
        )
    tracking = resolve_tracking(config.model, config.tracking)
    return tracking, find_version(config.model, tracking=tracking)


def _assess(task: str, config: AssessConfig, model_note: str) -> Assessed:
    key = find_key(task, config)
    pieces = Pieces(storage.join(config.out, PIECES), key.digest)
    if not config.again and (known := find_report(config.out, key=key.digest)) is not None:
        pieces.remove()  # it may have been killed before it did
        logger.info("%s: the report of these data and settings is there; --again assesses them again", config.out)
        return Assessed(known, {name: storage.join(config.out, name) for name in (REPORT, PAGE)})
    found = task_assessments()[task].run.load()(config, pieces)
    assessment = replace(
        found.assessment,
        key=key.digest,
        model_digest=key.model_digest,
        model_note=model_note,
        seconds=found.assessment.seconds + pieces.reused_s,
    )
    files = write_report(assessment, config.out, page=render_page(assessment, found.sections), others=found.files)
    pieces.remove()
    return Assessed(assessment, files)


def check_out(uri: str) -> None:
    """Check that a place for results can be written; raises ConfigError or StorageError."""
    if storage.is_remote(uri):
        probe = storage.join(uri, PIECES, "probe")
        storage.write_bytes(probe, b"")
        storage.delete(probe)
        return
    folder = storage.local_path(uri)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}.", remedy="Name another folder.") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} cannot be written.", remedy="Name another folder, or change its permissions.")
