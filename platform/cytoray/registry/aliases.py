"""Move aliases in an order that a crash anywhere leaves a champion, and a way back to the one before it.

Each champion is tagged with the version it took over from before any alias moves. So when a crash left ``previous`` and
``champion`` on one version, the tag of that version still knows which one ``previous`` was on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cytoray.failpoints import failpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
REPLACED_TAG = "cytoray.replaced_version"


def holder(client: MlflowClient, name: str, *, alias: str) -> str | None:
    """The number of the version that has the alias, or None."""
    number = client.get_registered_model(name).aliases.get(alias)
    return None if number is None else str(number)


def mark_candidate(client: MlflowClient, name: str, version: str, *, alias: str | None) -> None:
    """Make the version the candidate, unless it is the champion already and nobody asked for this very alias."""
    if alias == CANDIDATE or holder(client, name, alias=CHAMPION) != version:
        _set(client, name, version, alias=CANDIDATE)


def move_alias(client: MlflowClient, name: str, version: str, *, alias: str) -> None:
    """Point ``alias`` at the version, which then is no candidate any more; its old holder becomes ``previous``.

    Each step is one row of the store, so readers see the old holder or the new one. ``previous`` follows ``champion``
    only. Moving an alias to its holder changes nothing, but for what a crash may have left behind.
    """
    before = holder(client, name, alias=alias)
    failpoint("register.before_alias")
    if alias == CHAMPION and before == version:
        _restore_previous(client, name, version)
    elif alias == CHAMPION and before is not None:
        client.set_model_version_tag(name, version, REPLACED_TAG, before)
        _set(client, name, before, alias=PREVIOUS)
        failpoint("register.after_previous")
    _set(client, name, version, alias=alias)
    failpoint("register.after_alias")
    if alias != CANDIDATE and holder(client, name, alias=CANDIDATE) == version:
        client.delete_registered_model_alias(name, CANDIDATE)


def find_previous(client: MlflowClient, name: str, champion: str) -> str | None:
    """The version to go back to from ``champion``: that with the alias, or that of the tag after a crash."""
    found = holder(client, name, alias=PREVIOUS)
    if found != champion:
        return found
    numbers = {str(version.version): version for version in client.search_model_versions(f"name = '{name}'")}
    replaced = numbers[champion].tags.get(REPLACED_TAG)
    return replaced if replaced in numbers else None


def _restore_previous(client: MlflowClient, name: str, champion: str) -> None:
    """Undo what a promotion that died half-way has left: ``previous`` on the champion itself."""
    if holder(client, name, alias=PREVIOUS) != champion:
        return
    previous = find_previous(client, name, champion)
    if previous is None:
        client.delete_registered_model_alias(name, PREVIOUS)
    else:
        _set(client, name, previous, alias=PREVIOUS)


def _set(client: MlflowClient, name: str, version: str, *, alias: str) -> None:
    if holder(client, name, alias=alias) != version:
        client.set_registered_model_alias(name, alias, version)
