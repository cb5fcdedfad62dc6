"""Configuration of a pipeline: its stages in order, each with its own configuration and what it takes from others."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cytoray.config import Config, Location
from cytoray.runs import NAME
from cytoray.tracking import TrackingConfig

TAKES = ("corpus", "model", "scores")


class PipelineStage(Config):
    """One stage of a pipeline."""

    name: str = Field(pattern=NAME, description="Name of the stage in this pipeline; its results are kept under it.")
    config: dict[str, Any] = Field(
        description="Configuration of the stage: a YAML file of any stage, relative to this one, or its keys."
    )
    set: tuple[str, ...] = Field((), description="Keys of that file to change, as A.B=C.")
    corpus: str | None = Field(
        None, description="The stage whose corpus it takes; null: the nearest ingest before it, if there is one."
    )
    model: str | None = Field(
        None,
        description="The stage whose model it takes; null: for training, the nearest pretraining before it; for others "
        "the nearest stage that trained or, where only a registered version will do, promoted a model.",
    )
    scores: str | None = Field(
        None, description="The stage whose scores a gate reads; null: the nearest evaluation of its model, or its card."
    )
    retrain: Literal["new", "continue"] = Field(
        "new",
        description="When the cells have changed. new: train again from the same start; continue: start from the "
        "model that this stage made before (fine-tuning only).",
    )


class PipelineConfig(Config):
    """Configuration of a pipeline: what is done, in this order, and where it is kept."""

    kind: Literal["pipeline"] = Field("pipeline", description="What this file configures.")
    name: str = Field(pattern=NAME, description="Name of the pipeline; its records and page are kept under it.")
    store: Location = Field(description="Root of all data of cytoray, for all stages.")
    tracking: TrackingConfig | None = Field(None, description="MLflow, for all stages; null: as their files say.")
    num_cpus: int = Field(2, ge=1, description="Logical CPUs when a stage starts Ray here.")
    patience_s: float = Field(
        600.0, ge=0, description="Seconds for which a stage that needs MLflow waits while that is away."
    )
    stages: tuple[PipelineStage, ...] = Field(min_length=1, description="The stages, in the order in which they run.")

    @model_validator(mode="after")
    def _stages_are_in_order(self) -> Self:
        earlier: list[str] = []
        for stage in self.stages:
            for key in TAKES:
                named = getattr(stage, key)
                if named is not None and named not in earlier:
                    known = f"before it are {', '.join(earlier)}" if earlier else "it is the first"
                    raise ValueError(
                        f"stage {stage.name!r}: {key} is {named!r}, which is not a stage before it; {known}"
                    )
            if stage.name in earlier:
                raise ValueError(f"two stages are called {stage.name!r}")
            earlier.append(stage.name)
        return self
