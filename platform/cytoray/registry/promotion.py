"""Promote a candidate to champion: check a registered version against its gate and move the alias, or roll back."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from cytoray.errors import RegistryError
from cytoray.failpoints import failpoint
from cytoray.registry.aliases import CHAMPION, find_previous, find_replaced, holder, move_alias
from cytoray.registry.artifacts import RegisteredVersion
from cytoray.registry.gate import (
    AssessmentsConfig,
    Champion,
    GateConfig,
    Verdict,
    judge,
    judge_assessments,
    refusal,
)
from cytoray.registry.models import describe, find_model
from cytoray.registry.recorded import read_recorded
from cytoray.registry.scores import ScoresFile, load_scores
from cytoray.tracking.server import TrackingConfig, connect, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient

GATE_TAG = "cytoray.gate."
SCORES_TAG = "cytoray.gate_scores_digest"
_logger = logging.getLogger(__name__)


def promote_version(
    version: RegisteredVersion,
    *,
    tracking: TrackingConfig,
    gate: GateConfig | None = None,
    assessments: AssessmentsConfig | None = None,
    alias: str = CHAMPION,
) -> RegisteredVersion:
    """Move ``alias`` to a registered version whose scores pass ``gate``, and record the scores as tags of the version.

    Whether there is a gate or not, no assessment that was recorded on the version may be a loss to the simple method,
    except those that ``assessments`` allows. The old champion becomes ``previous``. Raises RegistryError that lists
    every failed condition, or if the scores belong to another bundle; the version then stays a candidate and no alias
    moves.
    """
    client, name, number = connect(tracking.uri), version.name, str(version.version)
    with explained(tracking.uri):
        tags = client.get_model_version(name, number).tags
    failed = judge_assessments(assessments or AssessmentsConfig(), read_recorded(tags, strict=True))
    passed: dict[str, str] = {}
    if gate is not None:
        step = tags.get("cytoray.step", "")
        scores = load_scores(gate.scores, model=gate.model, step=int(step) if step.isdecimal() else None)
        with explained(tracking.uri):
            verdict = _judge(client, version, gate, scores, alias=alias)
        passed, failed = _tags(gate, verdict, scores), [*verdict.failed, *failed]
    with explained(tracking.uri):
        if failed:
            raise refusal(version, failed, alias=alias, before=holder(client, name, alias=alias))
        failpoint("promote.before_score_tags")
        for key, value in passed.items():
            client.set_model_version_tag(name, number, key, value)
            failpoint("promote.after_score_tag")
        move_alias(client, name, number, alias=alias)
        failpoint("promote.after_alias")
        return describe(client.get_model_version(name, number), find_model(client, name))


def roll_back(
    name: str, *, tracking: TrackingConfig, alias: str = CHAMPION
) -> tuple[RegisteredVersion, RegisteredVersion]:
    """Move ``alias`` to the version that had it before; returns that one, and the one that it replaces.

    A second rollback undoes the first. Raises RegistryError if no version has the alias, or none had it before.
    """
    client = connect(tracking.uri)
    with explained(tracking.uri):
        find_model(client, name)
        current = holder(client, name, alias=alias)
        previous = None
        if current is not None and alias == CHAMPION:
            previous = find_previous(client, name, current)
        elif current is not None:
            previous = find_replaced(client, name, current, alias=alias)
        if current is None or previous is None:
            what = alias if current is None else f"previous {alias} to roll back to"
            remedy = "Promote a version; `cytoray models ls` lists all versions."
            raise RegistryError(f"{name} has no {what}.", remedy=remedy, name=name)
        move_alias(client, name, previous, alias=alias)
        model = find_model(client, name)
        now, before = (describe(client.get_model_version(name, number), model) for number in (previous, current))
        return now, before


def _judge(
    client: MlflowClient, version: RegisteredVersion, gate: GateConfig, scores: ScoresFile, *, alias: str
) -> Verdict:
    """Check the version's scores; raises RegistryError if they belong to another bundle."""
    if scores.bundle_digest is not None and scores.bundle_digest != version.digest:
        raise RegistryError(
            f"{gate.scores} belongs to the bundle {scores.bundle_digest[:16]}, but {version.name} version "
            f"{version.version} is {version.digest[:16]}.",
            remedy="Use the scores of this model, or promote the model that was scored.",
            expected=version.digest,
            seen=scores.bundle_digest,
        )
    before = holder(client, version.name, alias=alias)
    other = before if before != str(version.version) else None  # a version is not compared with itself
    verdict = judge(gate, scores.rows, champion=_champion(client, version.name, other, metric=gate.metric))
    _logger.info("%s version %d: %s %.6g", version.name, version.version, gate.metric, verdict.score)
    return verdict


def _champion(client: MlflowClient, name: str, number: str | None, *, metric: str) -> Champion | None:
    """Return the version to compare with, and the score with which it was promoted."""
    if number is None:
        return None
    score = client.get_model_version(name, number).tags.get(GATE_TAG + metric)
    return Champion(int(number), None if score is None else float(score))


def _tags(gate: GateConfig, verdict: Verdict, scores: ScoresFile) -> dict[str, str]:
    """Return the tags of a version that passed: its score, those it was compared with, and the digest of their file."""
    tags = {f"{GATE_TAG}{gate.metric}": repr(verdict.score), SCORES_TAG: scores.digest}
    for name, score in verdict.beaten.items():
        tags[f"{GATE_TAG}{gate.metric}.{re.sub(r'[^A-Za-z0-9_-]', '_', name)}"] = repr(
            score
        )  # characters that MLflow allows
    return tags
