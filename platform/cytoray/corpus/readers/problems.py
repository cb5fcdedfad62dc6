"""Say in plain words why a file cannot be read: its name, the place in it, and what to do."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections.abc import Iterator, Sequence

from anndata._io.specs.registry import IORegistryError  # what read_elem raises for an encoding it does not know
from isal import isal_zlib

from cytoray.errors import CorpusError

_IsalError: type[BaseException] = isal_zlib.error  # type: ignore[assignment] # its stubs call it an instance
# What h5py, zarr, anndata, pyarrow and scipy raise when bytes are damaged, or a group holds something else than it
# should.
DAMAGE: tuple[type[BaseException], ...] = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    AssertionError,
    SystemError,  # of compiled code: a name that is no UTF-8, a negative size
    IORegistryError,
    struct.error,
    zlib.error,
    _IsalError,
    json.JSONDecodeError,
)
REMEDY = "The file is damaged, or of another build: fetch it again, or write it again from its source."
SHOWN_CHARACTERS = 300


@contextlib.contextmanager
def explained(uri: str, what: str, *, remedy: str = REMEDY) -> Iterator[None]:
    """Turn what reading a damaged or foreign file raises into a CorpusError that names the file and the part."""
    try:
        yield
    except DAMAGE as error:
        raise damaged(uri, what, error, remedy=remedy) from error


def damaged(uri: str, what: str, error: BaseException, *, remedy: str = REMEDY) -> CorpusError:
    """The error for a part ``what`` of a file that cannot be read."""
    return CorpusError(f"{uri}: {what} cannot be read ({_one_line(error)}).", remedy=remedy, uri=uri, key=what)


def no_matrix(uri: str, name: str, there: Sequence[str]) -> CorpusError:
    """The error for a matrix that was asked for and is not there."""
    return CorpusError(
        f"{uri}: there is no matrix {name!r}.",
        remedy=f"This file holds: {', '.join(there) or 'none at all'}.",
        uri=uri,
        key=name,
    )


def no_column(uri: str, table: str, column: str, there: Sequence[str]) -> CorpusError:
    """The error for a column that was asked for and is not there."""
    return CorpusError(
        f"{uri}: {table} has no column {column!r}.",
        remedy=f"Columns there: {', '.join(there) or 'none'}.",
        uri=uri,
        key=f"{table}/{column}",
        columns=list(there),
    )


def _one_line(error: BaseException) -> str:
    """What an exception says, on one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
