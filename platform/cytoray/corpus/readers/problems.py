"""Explain in plain words why a file cannot be read: its name, the place in it, and what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import lzma
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence

from anndata._io.specs.registry import IORegistryError  # raised by read_elem for an encoding it does not know
from isal import isal_zlib

from cytoray.errors import CorpusError

_IsalError: type[BaseException] = isal_zlib.error  # type: ignore[assignment] # its stubs call it an instance
# Raised when the bytes themselves are wrong: cut short, or not what their compression wrote.
_BAD_BYTES: tuple[type[BaseException], ...] = (
    OSError,
    EOFError,
    struct.error,
    zlib.error,
    _IsalError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
# Raised by h5py, zarr, anndata, pyarrow and scipy when bytes are damaged or a group holds something unexpected.
DAMAGE: tuple[type[BaseException], ...] = (
    *_BAD_BYTES,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    AssertionError,
    SystemError,  # from compiled code: a name that is not UTF-8, a negative size
    IORegistryError,
    json.JSONDecodeError,
)
NOT_CELLS = "not_cells"  # the rule of a file that is intact but holds no cells
FETCH_AGAIN = "The file is damaged or incomplete: copy or download it again."
WRITE_AGAIN = (
    "Write the file again from its source with the current version of its library (adata.write_h5ad), or copy it again "
    "if the copy may be incomplete."
)
SHOWN_CHARACTERS = 300


class UnreadableError(ValueError):
    """A refusal by a reader that knows its own remedy; ``explained`` adds the file and the place."""

    def __init__(self, problem: str, *, remedy: str, rule: str = "") -> None:
        super().__init__(problem)
        self.remedy, self.rule = remedy, rule


@contextlib.contextmanager
def explained(uri: str, what: str) -> Iterator[None]:
    """Turn the errors of damaged or unexpected files into a CorpusError that names the file and the part."""
    try:
        yield
    except DAMAGE as error:
        raise damaged(uri, what, error) from error


def damaged(uri: str, what: str, error: BaseException) -> CorpusError:
    """Build the error for a part ``what`` of a file that cannot be read."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return no_space("to unpack or sort a file")
    remedy = FETCH_AGAIN if isinstance(error, _BAD_BYTES) else WRITE_AGAIN
    details = {}
    if isinstance(error, UnreadableError):
        remedy = error.remedy
        details = {"rule": error.rule} if error.rule else {}
    return CorpusError(
        f"{uri}: {what} cannot be read ({_one_line(error)}).", remedy=remedy, uri=uri, key=what, **details
    )


def no_space(purpose: str) -> CorpusError:
    """Build the error for a full temporary folder."""
    folder = tempfile.gettempdir()
    return CorpusError(
        f"No space left in {folder} ({shutil.disk_usage(folder).free:,} bytes free) {purpose}.",
        remedy="Set TMPDIR to a larger disk, or unpack the file and save it as an h5ad with a CSR matrix.",
    )


def no_matrix(uri: str, name: str, there: Sequence[str]) -> CorpusError:
    """Build the error for a matrix that was asked for but is missing."""
    return CorpusError(
        f"{uri}: there is no matrix {name!r}.",
        remedy=f"This file holds: {', '.join(there) or 'none at all'}.",
        uri=uri,
        key=name,
    )


def no_column(uri: str, table: str, column: str, there: Sequence[str]) -> CorpusError:
    """Build the error for a column that was asked for but is missing."""
    return CorpusError(
        f"{uri}: {table} has no column {column!r}.",
        remedy=f"Columns there: {', '.join(there) or 'none'}.",
        uri=uri,
        key=f"{table}/{column}",
        columns=list(there),
    )


def _one_line(error: BaseException) -> str:
    """The message of an exception, on one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
