"""Decide, once per deployment, which models a service has: each is pinned to one version and gets its own arguments."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cytoray.registry.last_good import pin_or_recall
from cytoray.registry.pinning import REGISTERED, PinnedModel
from cytoray.serving.config import AppArgs

AT_ONCE = 8  # models that are looked up or loaded in parallel


@dataclass(frozen=True)
class PlannedModel:
    """A model that a service will have.

    Attributes:
        name: Name by which requests ask it.
        args: Arguments of a service that has only this model.
        pinned: Its version.
    """

    name: str
    args: AppArgs
    pinned: PinnedModel

    @property
    def alias(self) -> str:
        """Alias in the registry by which it was looked up; empty if it was not."""
        uri = str(self.args.model_uri)
        return uri.rpartition("@")[2] if uri.startswith(REGISTERED) and "@" in uri else ""


def plan_models(args: AppArgs) -> tuple[PlannedModel, ...]:
    """Look up the models of a service; raises as ``last_good.pin_or_recall``."""
    alone = [args.for_model(model) for model in args.models] or [args]
    with ThreadPoolExecutor(min(len(alone), AT_ONCE), thread_name_prefix="cytoray-pin") as threads:
        pinned = list(threads.map(lambda one: pin_or_recall(str(one.model_uri), sources=one.sources()), alone))
    names = [model.name for model in args.models] or [pinned[0].name]
    return tuple(PlannedModel(*each) for each in zip(names, alone, pinned, strict=True))
