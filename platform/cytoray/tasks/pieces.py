"""Keep the finished pieces of a long computation until its result is written, so that a run that was killed continues.

    pieces = Pieces("report/.pieces", key)
    fold, reused = pieces.compute("fold 1", lambda: fit(split), kinds=(Answers,))

A piece is one file, written whole: JSON and arrays, nothing that runs code. Its name is a digest of ``key``, which
stands for everything that the result depends on, and of the piece's own name: after any change it is not found.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from cytoray import storage
from cytoray.failpoints import failpoint
from cytoray.tasks.packing import Array, kinds_of, pack, unpack

logger = logging.getLogger(__name__)
Value = TypeVar("Value")
_DIGEST_BYTES = 32  # a file begins with the SHA-256 of the rest
_JSON = "json"  # name of the JSON among the arrays


class Pieces:
    """The pieces of one computation. Without a folder nothing is kept, and every piece is computed."""

    def __init__(self, folder: str | None = None, key: str = "") -> None:
        """Use a folder or s3:// prefix, and the digest of everything that the pieces depend on."""
        self._folder, self._key = folder, key
        self.reused_s = 0.0  # what the computation of the pieces that were found took

    def compute(
        self, name: str, function: Callable[[], Value], *, kinds: Sequence[type[Any]] = ()
    ) -> tuple[Value, bool]:
        """Return the piece ``name`` and whether it was found; otherwise it is what ``function`` returns.

        The value is a tree of mappings, lists, tuples, arrays, JSON values and dataclasses of ``kinds``. It is always
        returned as it is read from the piece, so that a run that continues cannot differ from one without a break.
        """
        place = self._place(name)
        data = None if place is None else storage.find_bytes(place)
        if data is not None:
            if hashlib.sha256(data[_DIGEST_BYTES:]).digest() == data[:_DIGEST_BYTES]:
                value, seconds = _decode(data[_DIGEST_BYTES:], kinds)
                self.reused_s += seconds
                return value, True
            logger.warning("%s (%s) is damaged and is computed again", place, name)
        started = time.monotonic()
        body = _encode(function(), time.monotonic() - started)
        if place is not None:
            failpoint("assess.before_piece")
            storage.write_bytes(place, hashlib.sha256(body).digest() + body)
            failpoint("assess.after_piece")
        return _decode(body, kinds)[0], False

    def has(self, name: str) -> bool:
        """Return whether the piece ``name`` is kept; it may still be damaged."""
        place = self._place(name)
        return place is not None and storage.exists(place)

    def remove(self) -> None:
        """Remove all pieces in the folder, those of other settings as well."""
        if self._folder is not None:
            storage.delete_prefix(self._folder)

    def _place(self, name: str) -> str | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(f"{self._key}\0{name}".encode()).hexdigest()
        return storage.join(self._folder, f"{digest[:32]}.npz")


def _encode(value: Any, seconds: float) -> bytes:
    arrays: dict[str, Array] = {}
    packed = pack({"value": value, "seconds": seconds}, arrays, "")
    names = {name: f"array{number}" for number, name in enumerate(arrays)}  # a name in a zip file has its own rules
    text = json.dumps({"packed": packed, "names": names}).encode()
    stored = {names[name]: array for name, array in arrays.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{_JSON: np.frombuffer(text, np.uint8)}, **stored)
    return buffer.getvalue()


def _decode(body: bytes, kinds: Sequence[type[Any]]) -> tuple[Any, float]:
    with np.load(io.BytesIO(body), allow_pickle=False) as stored:
        about = json.loads(stored[_JSON].tobytes())
        arrays = {name: stored[place] for name, place in about["names"].items()}
    found = unpack(about["packed"], arrays, kinds_of(*kinds))
    return found["value"], float(found["seconds"])
