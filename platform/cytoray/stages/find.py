"""Every stage by its kind; a stage is imported when it is looked up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cytoray.tasks import task_assessments, task_offline, task_stages
from cytoray.tasks.spec import Lazy

Run = Callable[[Any], dict[str, Any]]
_OFFLINE: Lazy[Run] = Lazy("cytoray.stages.run", "summarise_offline")
_OTHERS: dict[str, Lazy[Run]] = {
    "ingest": Lazy("cytoray.stages.ingest", "run_ingest"),
    "infer-networks": Lazy("cytoray.stages.run", "summarise_inference"),
    "promote": Lazy("cytoray.stages.run", "summarise_promote"),
    "rollout": Lazy("cytoray.stages.rollout", "run_rollout"),
}


def find_stage(kind: str) -> Run:
    """Return the function that runs the stage ``kind`` with its configuration and returns the result to print."""
    assessments = {f"assess-{task}": task for task in task_assessments()}
    if kind in assessments:
        return partial(_assess, assessments[kind])
    if kind in task_offline():
        return _OFFLINE.load()
    return (_OTHERS[kind] if kind in _OTHERS else task_stages()[kind].run).load()


def _assess(task: str, config: Any) -> dict[str, Any]:
    from cytoray.stages.assess import run_assessment

    return run_assessment(task, config).assessment.as_dict()
