"""The checks that a version must pass before it serves in the place of another one."""

from __future__ import annotations

from cytoray.errors import RequestError, ServingError
from cytoray.model.golden import check_golden_cells
from cytoray.registry.pinning import PinnedModel
from cytoray.tasks import task_endpoints
from cytoray.tasks.endpoint import ServedModel


def check_version(served: ServedModel, pinned: PinnedModel) -> None:
    """Raise ModelError if a model that was just loaded does not answer as when it was registered.

    A version that was registered without golden cells is only tested by the cell of its CellService.
    """
    if pinned.golden:
        check_golden_cells(served.bundle, pinned.golden)


def check_succession(new: ServedModel, old: ServedModel, *, is_rollback: bool) -> None:
    """Raise ServingError unless ``new`` can take the place of ``old`` while clients ask.

    Both need the same vocabulary, since requests may be under way that were mapped to it. What the old one answers the
    new one must answer, unless this leads back to the version that the old one replaced.
    """
    if new.bundle.vocabulary.digest() != old.bundle.vocabulary.digest():
        raise ServingError(
            f"Version {new.info.version} has another vocabulary than version {old.info.version}, which serves.",
            remedy="Restart the service to serve it.",
            refused="vocabulary",
        )
    if lost := sorted(answered_by(old) - answered_by(new)):
        if is_rollback:
            return
        raise ServingError(
            f"Version {new.info.version} does not answer {', '.join(lost)}, as version {old.info.version} does.",
            remedy="Register a version that does, or restart the service to serve this one.",
            refused="endpoints",
        )


def answered_by(served: ServedModel) -> set[str]:
    """Return the endpoints that a model can answer."""
    found = set()
    for name, endpoint in task_endpoints().items():
        try:
            endpoint.check(served)
        except RequestError:
            continue
        found.add(name)
    return found
