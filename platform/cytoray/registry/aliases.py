"""Move aliases in an order that preserves the champion, and a way back to its predecessor, after any crash.

Before any alias moves, the new champion is tagged with the version that it replaces. If a crash leaves ``previous`` and
``champion`` on the same version, the tag of that version still names the one that ``previous`` belongs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cytoray.failpoints import failpoint

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
REPLACED_TAG = "cytoray.replaced_version"  # of a champion; of other aliases with their name behind it


def holder(client: MlflowClient, name: str, *, alias: str) -> str | None:
    """Return the number of the version that has the alias, or None."""
    number = client.get_registered_model(name).aliases.get(alias)
    return None if number is None else str(number)


def mark_candidate(client: MlflowClient, name: str, version: str, *, alias: str | None) -> None:
    """Make the version the candidate, unless it is already the champion and ``alias`` is not `candidate`."""
    if alias == CANDIDATE or holder(client, name, alias=CHAMPION) != version:
        _set(client, name, version, alias=CANDIDATE)


def move_alias(client: MlflowClient, name: str, version: str, *, alias: str) -> None:
    """Move ``alias`` to the version, which then stops being the candidate; the old holder becomes ``previous``.

    Each step changes one row of the store, so readers see either the old holder or the new one. ``previous`` is changed
    for ``champion`` only; with other aliases, only a tag of the version names the one that it replaced. Moving an alias
    to its holder changes nothing, but repairs what a crash may have left behind.
    """
    before = holder(client, name, alias=alias)
    failpoint("register.before_alias")
    if alias == CHAMPION and before == version:
        _restore_previous(client, name, version)
    elif alias == CHAMPION and before is not None:
        client.set_model_version_tag(name, version, REPLACED_TAG, before)
        failpoint("register.after_replaced_tag")
        _set(client, name, before, alias=PREVIOUS)
        failpoint("register.after_previous")
    elif before is not None and before != version and alias != CANDIDATE:
        client.set_model_version_tag(name, version, replaced_tag(alias), before)
    _set(client, name, version, alias=alias)
    failpoint("register.after_alias")
    if alias != CANDIDATE and holder(client, name, alias=CANDIDATE) == version:
        client.delete_registered_model_alias(name, CANDIDATE)
        failpoint("register.after_candidate_removed")


def replaced_tag(alias: str) -> str:
    """Return the tag of a version that names the one which it replaced as the holder of an alias."""
    return REPLACED_TAG if alias == CHAMPION else f"{REPLACED_TAG}.{alias}"


def find_replaced(client: MlflowClient, name: str, holding: str, *, alias: str) -> str | None:
    """Find the version that the holder of an alias replaced, if it still exists."""
    numbers = {str(version.version): version for version in client.search_model_versions(f"name = '{name}'")}
    replaced = numbers[holding].tags.get(replaced_tag(alias))
    return replaced if replaced in numbers else None


def find_previous(client: MlflowClient, name: str, champion: str) -> str | None:
    """Find the version to roll back to from ``champion``: that with the alias or, after a crash, that in the tag."""
    found = holder(client, name, alias=PREVIOUS)
    return found if found != champion else find_replaced(client, name, champion, alias=CHAMPION)


def _restore_previous(client: MlflowClient, name: str, champion: str) -> None:
    """Repair the result of an interrupted promotion: ``previous`` on the champion itself."""
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
