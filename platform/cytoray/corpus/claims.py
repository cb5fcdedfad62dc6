"""Keep an ingest and a clean-up of the same corpus out of each other's way.

An ingest that is started again reuses objects as old as its first attempt. It therefore writes a claim before it looks
at any of them, and ``gc`` leaves a corpus alone while anything in its staging area, the claim included, is young. A
``gc`` that is about to delete puts a mark beside the versions first and looks for claims afterwards. Each writes its
own object before it reads the other's, so that of two that start at once at least one notices and steps back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

from cytoray import storage
from cytoray.errors import ConflictError, NotFoundError

MARK = "gc-under-way"
MARK_LIFE_S = 600.0  # a mark that was not renewed for so long belongs to a process that died
RENEW_S = 60.0


def mark_uri(uri: str) -> str:
    """The mark of a ``gc`` that deletes below the corpus at ``uri``."""
    return storage.join(uri, MARK)


def claim_staging(uri: str, *, staging: str) -> None:
    """Claim what the corpus at ``uri`` holds for the ingest that works in ``staging``.

    Raises ConflictError while a ``gc`` deletes objects of this corpus.
    """
    claim = storage.join(staging, "claim")
    storage.write_bytes(claim, b"An ingest began or resumed here when this object was last written.\n")
    try:
        marked_s = storage.info(mark_uri(uri)).modified_s
    except NotFoundError:
        return
    # Both times are the store's, so that clocks of two machines do not matter.
    if storage.info(claim).modified_s - marked_s < MARK_LIFE_S:
        raise ConflictError(
            f"{uri}: `cytoray data gc` is deleting objects of this corpus.",
            remedy=f"Start the ingest again when it has ended; a gc that died is ignored after {MARK_LIFE_S:.0f} s.",
            uri=mark_uri(uri),
        )


class Marks:
    """The marks of a ``gc`` under way."""

    def __init__(self, uris: Iterable[str]) -> None:
        self._uris = tuple(uris)
        self._write()

    def renew(self) -> None:
        """Keep the marks alive; to be called before each delete. ConflictError if they may have expired meanwhile."""
        elapsed_s = time.monotonic() - self._written_s
        if elapsed_s > MARK_LIFE_S / 2:
            raise ConflictError(
                f"gc was interrupted for {elapsed_s:.0f} s; an ingest may have begun.", remedy="Start gc again."
            )
        if elapsed_s > RENEW_S:
            self._write()

    def _write(self) -> None:
        self._written_s = time.monotonic()
        for uri in self._uris:
            storage.write_bytes(mark_uri(uri), b"gc deletes objects of this corpus.\n")


@contextlib.contextmanager
def marked(uris: Iterable[str]) -> Iterator[Marks]:
    """Mark corpora while objects of theirs are deleted."""
    uris = tuple(uris)
    try:
        yield Marks(uris)
    finally:
        for uri in uris:
            storage.delete(mark_uri(uri))
