"""Reports about the version of a model: which one serves, since when, and why not another one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from pydantic import Field

from cytoray.tasks.messages import Message, ModelInfo


class Refusal(Message):
    """A version that was not taken."""

    version: str = Field(description="The version that the alias names.")
    reason: str
    result: str = Field(description="A stable name of the reason, as in cytoray_swaps_total.")
    since: str = Field(description="Time of the first attempt.")
    attempts: int


class ChallengerStatus(Message):
    """The comparison with a challenger, since it was loaded."""

    model: ModelInfo
    share: float = Field(description="Share of the requests that it gets.")
    shadow: bool = Field(description="Whether its answers are only compared.")
    answered: int = Field(description="Requests that it answered.")
    replaced: int = Field(description="Requests that it failed to answer, and that the serving version answered.")
    compared: int = Field(description="Requests that both computed.")
    dropped: int = Field(description="Copies that were not computed, since the service was busy.")
    failed: int = Field(description="Copies that failed.")
    cells: int = Field(description="Cells whose embeddings were compared.")
    mean_cosine: float | None = Field(description="Mean cosine of the embeddings of a cell.")
    min_cosine: float | None = Field(description="The smallest one.")
    label_agreement: float | None = Field(description="Share of the cells with the same label.")


class RolloutStatus(Message):
    """The version of a model in one replica."""

    model: ModelInfo = Field(description="The version that serves.")
    follows: str | None = Field(None, description="The alias that decides; null for a version that never changes.")
    since: str | None = Field(None, description="Since when the version serves.")
    previous: ModelInfo | None = Field(None, description="The version before, if it is still loaded.")
    loading: ModelInfo | None = Field(None, description="The version that is being loaded.")
    degraded: str | None = Field(None, description="Why the service may not serve what the alias names.")
    refused: Refusal | None = Field(None, description="The version that the alias names, if it was not taken.")
    checked: str | None = Field(None, description="When the alias was last seen.")
    swaps: dict[str, int] = Field({}, description="Attempts to change the version, by result.")
    challenger: ChallengerStatus | None = None


@runtime_checkable
class Reporting(Protocol):
    """A slot that knows why it serves a version."""

    def status(self) -> RolloutStatus:
        """Return which version serves, and why."""


class Identified(Protocol):
    """A slot."""

    @property
    def model(self) -> ModelInfo:
        """Identity of the version that answers at this moment."""


def status_of(slot: Identified) -> RolloutStatus:
    """Return the status of a slot; of one without rollouts, its version."""
    return slot.status() if isinstance(slot, Reporting) else RolloutStatus(model=slot.model)
