"""Run a pipeline: one stage after the other, each as a job; what is done is skipped, a failure stops the rest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cytoray import storage
from cytoray.errors import CytorayError, GateError, TrainingStoppedError
from cytoray.failpoints import failpoint
from cytoray.operations.pipeline.planning import StagePlan, plan, plan_stage
from cytoray.operations.pipeline.reading import Pipeline, Stage
from cytoray.operations.pipeline.records import (
    StageFailure,
    failure_uri,
    find_failure,
    find_latest,
    record_uri,
    set_latest,
)
from cytoray.operations.pipeline.runners import Runner
from cytoray.operations.pipeline.tasks import build_task, stage_folder
from cytoray.stages.config import PromoteConfig
from cytoray.stages.rollout import RolloutStageConfig

logger = logging.getLogger(__name__)
STOPPED = TrainingStoppedError.exit_code  # run it again to continue
OWN_CODES = (CytorayError.exit_code, GateError.exit_code, STOPPED)


class StageError(CytorayError):
    """A stage of a pipeline that failed or was stopped; its exit code is that of the stage's job."""

    def __init__(self, problem: str, *, remedy: str = "", exit_code: int = 1, **details: Any) -> None:
        super().__init__(problem, remedy=remedy, exit_code=exit_code, **details)
        self.exit_code = exit_code


@dataclass(frozen=True)
class PipelineRun:
    """The stages after a run, and the names of those that ran."""

    plans: Sequence[StagePlan]
    ran: tuple[str, ...]
    page: str


def run_pipeline(pipeline: Pipeline, runner: Runner, *, until: str | None = None) -> PipelineRun:
    """Run all stages that are not done, up to ``until``, and write the page.

    Raises StageError for the first stage that fails; its exit code is that of the job: 2 for a mistake, 3 if a gate
    refused the model, 75 if it was stopped and continues when the pipeline is run again.
    """
    from cytoray.operations.pipeline.page import write_page  # jinja2, which planning does without

    plans: dict[str, StagePlan] = {}
    ran: list[str] = []
    try:
        for stage in _up_to(pipeline, until):
            plans[stage.name] = plan_stage(pipeline, stage, plans)
            if plans[stage.name].state == "done":
                _mend_latest(pipeline, plans[stage.name])
                logger.info("%s: done", stage.name)
                continue
            logger.info("%s: runs (%s)", stage.name, plans[stage.name].reason)
            ran.append(stage.name)
            _run_stage(pipeline, plans[stage.name], runner)
            plans[stage.name] = plan_stage(pipeline, stage, plans)
            if plans[stage.name].state != "done":
                raise _changed_meanwhile(plans[stage.name])
    except CytorayError:
        try:
            write_page(pipeline, plan(pipeline), is_changed=bool(ran))
        except CytorayError as error:  # such as a store that is away: the stage's own error is the one to report
            logger.warning("the page was not written: %s", error)
        raise
    page = write_page(pipeline, plan(pipeline), is_changed=bool(ran))
    return PipelineRun(list(plans.values()), tuple(ran), page)


def _up_to(pipeline: Pipeline, until: str | None) -> Sequence[Stage]:
    """Return the stages up to the one called ``until``."""
    names = [stage.name for stage in pipeline.stages]
    if until is None:
        return pipeline.stages
    if until not in names:
        raise CytorayError(f"There is no stage {until!r}.", remedy=f"Stages: {', '.join(names)}.")
    return pipeline.stages[: names.index(until) + 1]


def _mend_latest(pipeline: Pipeline, done: StagePlan) -> None:
    """Record that a stage was done last, if it was killed before it could or other inputs came in between."""
    assert done.key is not None, "it is done"
    if isinstance(done.stage.config, PromoteConfig | RolloutStageConfig):
        return  # these are done again instead
    folder = stage_folder(pipeline, done.stage)
    latest = find_latest(folder)
    if latest is None or latest.key.digest != done.key.digest:
        set_latest(folder, done.key.digest)


def _run_stage(pipeline: Pipeline, planned: StagePlan, runner: Runner) -> None:
    """Run the job of a stage to its end; raises StageError if it fails."""
    assert planned.key is not None, "all that it takes is there"
    assert planned.taken is not None, "all that it takes is there"
    stage = planned.stage
    task = build_task(pipeline, stage, planned.key, planned.taken)
    key = planned.key.digest
    if planned.is_lost:
        storage.delete(record_uri(task.folder, key))
    storage.delete(failure_uri(task.folder, key))
    failpoint("pipeline.before_task")
    storage.write_bytes(task.uri, task.model_dump_json(indent=1).encode())
    failpoint("pipeline.after_task")
    code = runner.run(task)
    failpoint("pipeline.after_job")
    if code == 0:
        return
    if runner.is_stopping:
        raise StageError(
            f"Stage {stage.name} was stopped.", remedy="Run the same command again to continue.", exit_code=STOPPED
        )
    raise _failed(stage, find_failure(task.folder, key), code)


def _failed(stage: Stage, failure: StageFailure | None, code: int) -> StageError:
    """Describe the failure of a job."""
    again = "Then run the same command again: what is done is skipped, and a training continues."
    if failure is None:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}, see its log above"
        return StageError(
            f"Stage {stage.name} ({stage.kind}) {how}.",
            remedy="Run the same command again: what is done is skipped, and a training continues.",
            exit_code=code if code in OWN_CODES else 1,
            stage=stage.name,
        )
    return StageError(
        f"Stage {stage.name} ({stage.kind}): {failure.problem}",
        remedy=f"{failure.remedy} {again}".strip(),
        exit_code=failure.exit_code,
        stage=stage.name,
        error=failure.kind,
    )


def _changed_meanwhile(planned: StagePlan) -> StageError:
    """Describe a stage that is not done although its job was: what it reads has changed while it ran."""
    return StageError(
        f"Stage {planned.stage.name} was done, but what it reads has changed meanwhile ({planned.reason}).",
        remedy="Run the same command again to take that in.",
        exit_code=STOPPED,
        stage=planned.stage.name,
    )
