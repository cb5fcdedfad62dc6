"""Put a model into a slot: at its start the version that its alias names now, or the best that there is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from cytoray.errors import CytorayError, ServingError
from cytoray.model.device import choose_reserved_device
from cytoray.registry.last_good import recall, remember
from cytoray.registry.pinning import PinnedModel, is_alias, pin_model
from cytoray.serving.rollout.admission import check_succession, check_version
from cytoray.serving.rollout.follower import Follower, model_of
from cytoray.serving.rollout.memory import check_memory
from cytoray.serving.rollout.slot import ModelSlot
from cytoray.serving.service import CellService

if TYPE_CHECKING:
    from cytoray.serving.config import AppArgs

logger = logging.getLogger(__name__)
Load = Callable[["AppArgs", PinnedModel], CellService]


class RegisteredVersions:
    """The versions of one model, from MLflow and the local cache."""

    def __init__(self, args: AppArgs, load: Load) -> None:
        self._args, self._load = args, load

    def look_up(self, uri: str) -> PinnedModel:
        """Find the version that ``uri`` names now."""
        return pin_model(uri, sources=self._args.sources())

    def load_first(self, pinned: PinnedModel) -> CellService:
        """Load and check a version when nothing serves yet."""
        service = self._load(self._args, pinned)
        check_version(service.served, pinned)
        return service

    def load(self, pinned: PinnedModel, slot: ModelSlot) -> CellService:
        """Load and check a version beside those of ``slot``; the previous one gives way if memory is short.

        Raises ServingError if there is too little memory.
        """
        device = choose_reserved_device(self._args.num_gpus)
        num_bytes, margin = pinned.num_bytes or _size_of(slot), self._args.rollout.memory_margin_bytes
        try:
            check_memory(num_bytes, margin_bytes=margin, device=device)
        except ServingError as error:
            if error.details["needed"] - error.details["free"] > (0 if slot.previous is None else _size_of(slot)):
                raise  # without the previous version it would not fit either
            slot.drop_previous()
            check_memory(num_bytes, margin_bytes=margin, device=device)
        return self.load_first(pinned)

    def succeed(self, new: CellService, old: CellService, *, is_rollback: bool) -> None:
        """Raise ServingError unless ``new`` can take the place of ``old``."""
        check_succession(new.served, old.served, is_rollback=is_rollback)

    def remember(self, uri: str, pinned: PinnedModel) -> None:
        """Record that a version serves, for a start without MLflow."""
        remember(uri, pinned, sources=self._args.sources())


def build_slot(args: AppArgs, pinned: PinnedModel, *, load: Load) -> ModelSlot:
    """Load the model of ``args`` and, if it is named by an alias, follow that.

    ``pinned`` is the version that the alias named when the service was deployed. A replica that starts later takes the
    one that it names now; if that cannot be served, or MLflow does not answer, the one that served last from the local
    cache, and finally ``pinned``. Raises what ``load`` raises if none can be served.
    """
    versions = RegisteredVersions(args, load)
    uri = str(args.model_uri)
    if not (args.rollout.follow and is_alias(uri)):
        return ModelSlot(versions.load_first(pinned))
    choices = _choose(args, uri, pinned, versions)
    failed: list[tuple[PinnedModel, CytorayError]] = []
    for choice in choices:
        try:
            service = versions.load_first(choice)
        except CytorayError as error:
            if choice is choices[-1]:
                raise
            failed.append((choice, error))
            continue
        slot = ModelSlot(service)
        slot.follower = Follower(slot, uri, choice, versions=versions, config=args.rollout)
        for refused, reason in failed[:1]:  # that of the alias
            slot.follower.refuse(refused, reason)
        versions.remember(uri, choice)
        slot.follower.start()
        return slot
    raise AssertionError("unreachable")


def _choose(args: AppArgs, uri: str, pinned: PinnedModel, versions: RegisteredVersions) -> list[PinnedModel]:
    """Return the versions that a replica may start with, the best first."""
    found: list[PinnedModel | None] = []
    try:
        found.append(versions.look_up(uri))
    except CytorayError as error:
        logger.warning("%s cannot be looked up, the version that served last is used: %s", uri, error)
    found += [recall(uri, sources=args.sources()), pinned]
    distinct = {model_of(one): one for one in reversed(found) if one is not None}
    return list(reversed(distinct.values()))


def _size_of(slot: ModelSlot) -> int:
    """Return about how many bytes a version of the slot takes; they differ little."""
    return sum(tensor.nbytes for tensor in slot.served.bundle.model.state_dict().values())
