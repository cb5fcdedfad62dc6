"""The conditions under which a model was trained for a task: coded columns, modalities and a fixed panel of genes."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from cytoray.config import Config


class Conditions(Config):
    """The content of a bundle's ``conditions.json``: the meaning of the codes and features that its model was given."""

    task: str = Field(pattern=r"^[a-z][a-z0-9_-]*$", description="Task the model was trained for, such as annotation.")
    columns: dict[str, tuple[str, ...]] = Field(
        {}, description="Values of each coded column of obs, in the order of their codes."
    )
    features: dict[str, tuple[str, ...]] = Field(
        {}, description="Names of the features of each further modality, in the order of their ids."
    )
    context: dict[str, int] = Field(
        {},
        exclude_if=lambda context: not context,  # which leaves the digests of older bundles as they were
        description="Maximum number of tokens per cell of each further modality whose features are tokens; a modality "
        "with no more features has all of them, zeros included.",
    )
    panel: tuple[str, ...] | None = Field(
        None, description="Genes that every cell has as tokens, expressed or not; null: only the expressed ones."
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        if unknown := self.context.keys() - self.features.keys():
            raise ValueError(f"context.{min(unknown)} has no features")
        lists = [(f"columns.{name}", values) for name, values in self.columns.items()]
        lists += [(f"features.{name}", values) for name, values in self.features.items()]
        lists += [] if self.panel is None else [("panel", self.panel)]
        for place, values in lists:
            if not values:
                raise ValueError(f"{place} is empty")
            if len(set(values)) < len(values):
                raise ValueError(f"{place} lists {next(v for v in values if values.count(v) > 1)!r} more than once")
        return self
