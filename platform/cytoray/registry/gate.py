"""The gate of a promotion: a candidate's scores must pass a threshold, beat baselines and match the champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from cytoray.config import Config, Location
from cytoray.errors import GateError, RegistryError
from cytoray.registry.recorded import RecordedAssessment

if TYPE_CHECKING:
    from cytoray.registry.artifacts import RegisteredVersion

Rows = Mapping[str, Mapping[str, float]]  # of a table of scores: the metrics of each model and baseline, by name
# Metrics of cytoray for which lower is better.
ERRORS = frozenset({"mse", "mae", "mre", "mean_bin", "masked", "classification", "regression"})
ROUNDING = 1e-12  # 0.8 - 0.7 is a little less than 0.1


class GateConfig(Config):
    """Conditions that a version must all meet before an alias moves to it."""

    scores: Location = Field(
        description="scores.json of `cytoray evaluate`, or card.json of a run, which has its errors on held-out cells."
    )
    metric: str = Field(pattern=r"^[\w-][\w.-]*$", description="Metric to compare, such as macro_f1 or accuracy.")
    model: str = Field("cytoray", min_length=1, description="Row of `scores` for this model.")
    better: Literal["higher", "lower"] = Field("higher", description="Whether a higher or a lower `metric` is better.")
    at_least: float | None = Field(None, allow_inf_nan=False, description="Minimum value that passes.")
    at_most: float | None = Field(None, allow_inf_nan=False, description="Maximum value that passes, for errors.")
    beats: tuple[str, ...] = Field((), description="Rows of `scores` that the model must beat.")
    not_below_champion: bool = Field(
        False, description="Whether it must be as good as the version with the alias was when that was promoted."
    )
    tolerance: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="How much worse than the champion still passes."
    )

    @model_validator(mode="after")
    def _has_conditions_of_one_direction(self) -> Self:
        if self.better == "higher" and self.metric in ERRORS:
            raise ValueError(f"{self.metric} is an error: set better: lower")
        wrong = "at_most" if self.better == "higher" else "at_least"
        if getattr(self, wrong) is not None:
            raise ValueError(f"{wrong} cannot be combined with better: {self.better}")
        if self.at_least is None and self.at_most is None and not self.beats and not self.not_below_champion:
            raise ValueError("this gate has no condition: set at_least (or at_most), beats or not_below_champion")
        if self.tolerance and not self.not_below_champion:
            raise ValueError("tolerance requires not_below_champion")
        return self


class AssessmentsConfig(Config):
    """Conditions on the assessments that were recorded on a version, which hold with and without a gate."""

    require: tuple[str, ...] = Field((), description="Tasks whose assessment must have been recorded on the version.")
    allow_loss: tuple[str, ...] = Field(
        (), description="Tasks that may be below the simple method; otherwise a recorded loss refuses the promotion."
    )


@dataclass(frozen=True)
class Champion:
    """The version that a candidate would replace; ``score`` is None if it was promoted without this metric."""

    version: int
    score: float | None


@dataclass(frozen=True)
class Verdict:
    """The scores that were compared, by row, and a sentence for each condition that failed."""

    score: float
    beaten: Mapping[str, float]
    failed: tuple[str, ...]


def judge_assessments(config: AssessmentsConfig, recorded: Sequence[RecordedAssessment]) -> list[str]:
    """Return a sentence for each task that is missing or whose product is below the simple method; a tie passes."""
    known = {each.task for each in recorded}
    failed = [f"{task} has not been assessed" for task in config.require if task not in known]
    for each in recorded:
        if each.verdict == "loss" and each.task not in config.allow_loss:
            assert each.product is not None, "a verdict compares two numbers"
            assert each.baseline is not None, "a verdict compares two numbers"
            interval = ""
            if each.interval is not None:
                interval = f", difference {each.interval[0]:+.4f} to {each.interval[1]:+.4f}"
            failed.append(
                f"{each.task}: {each.metric} {each.product:.4f} is below the simple method, which has "
                f"{each.baseline:.4f}{interval} ({each.data}, {each.split})"
            )
    return failed


def judge(gate: GateConfig, rows: Rows, *, champion: Champion | None) -> Verdict:
    """Check the scores against every condition; without a champion that condition passes.

    Raises RegistryError that lists the rows or metrics found if one is missing.
    """
    score = _score(gate, rows, gate.model)
    baselines = {name: _score(gate, rows, name) for name in gate.beats}
    sign = 1.0 if gate.better == "higher" else -1.0
    here = f"{gate.metric} {_number(score)}"
    failed = []
    if gate.at_least is not None and score < gate.at_least:
        failed.append(f"{here} is not at least {_number(gate.at_least)}")
    if gate.at_most is not None and score > gate.at_most:
        failed.append(f"{here} is not at most {_number(gate.at_most)}")
    failed += [
        f"{here} does not beat {name}, which has {_number(baseline)}"
        for name, baseline in baselines.items()
        if sign * (score - baseline) <= 0
    ]
    if gate.not_below_champion and champion is not None:
        failed += _compare(gate, score, champion, sign=sign)
    return Verdict(score, baselines, tuple(failed))


def refusal(version: RegisteredVersion, failed: Sequence[str], *, alias: str, before: str | None) -> GateError:
    """Describe every failed condition, and which version has the alias."""
    if before == str(version.version):
        standing = f"it already had the alias {alias} and keeps it"
    else:
        kept = "no version has" if before is None else f"version {before} keeps"
        standing = f"it stays a candidate, and {kept} the alias {alias}"
    return GateError(
        f"{version.name} version {version.version} does not pass its gate; {standing}:\n  "
        + "\n  ".join(failed)
        + "\n",
        remedy="Promote a better model, or relax the sections `gate` and `assessments` of the configuration (a loss in "
        "an assessment passes if its task is in `assessments.allow_loss`, --allow-loss TASK).",
        failed=list(failed),
    )


def _compare(gate: GateConfig, score: float, champion: Champion, *, sign: float) -> list[str]:
    """Describe, in at most one sentence, how the score falls below that of the champion."""
    here, there = f"{gate.metric} {_number(score)}", f"version {champion.version}"
    if champion.score is None:
        return [f"{here} cannot be compared: {there} was promoted without {gate.metric} (promote it with its scores)"]
    if sign * (score - champion.score) >= -gate.tolerance - ROUNDING:
        return []
    return [f"{here} is worse than the {_number(champion.score)} of {there} (tolerance {_number(gate.tolerance)})"]


def _score(gate: GateConfig, rows: Rows, name: str) -> float:
    """Return the metric of one row."""
    if name not in rows:
        there = f"There are: {', '.join(sorted(rows)) or 'none'}."
        raise RegistryError(f"{gate.scores} has no scores of {name!r}.", remedy=there, scores=gate.scores)
    if gate.metric not in rows[name]:
        there = f"There are: {', '.join(sorted(rows[name])) or 'none'}."
        raise RegistryError(f"{gate.scores}: {name!r} has no {gate.metric}.", remedy=there, scores=gate.scores)
    return rows[name][gate.metric]


def _number(value: float) -> str:
    return f"{value:.8g}"
