"""A bundle's files: a listing of their digests, verified before anything is parsed, and written whole or not at all.

Format 1 has the six ``FILES``. Format 2 adds ``conditions.json`` or files below ``attachments/``, or both. A bundle
without these is still written as format 1, so that its bytes and its digest stay the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cytoray.drafts import draft_folder
from cytoray.errors import ConflictError, DigestError, ModelError, NotFoundError

DIGESTS, CONDITIONS, ATTACHMENTS = "digests.json", "conditions.json", "attachments"
FILES = ("config.json", "labels.json", "lineage.json", "model.safetensors", "preprocessing.json", "vocab.json")
FORMATS = (1, 2)
SUFFIXES = (".faiss", ".json", ".parquet", ".safetensors")  # of attachments: formats whose readers run no code
CHUNK_BYTES = 16 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Attachment:
    """A named file that belongs to a model, such as an index or a table, of any size.

    ``source`` is its bytes or a local file, which is read only when it is asked for. ``sha256`` is known of an
    attachment that was loaded with its bundle, and was verified then.
    """

    source: Path | bytes = field(repr=False)
    sha256: str | None = None

    @property
    def path(self) -> Path:
        """The local file, to be read in parts or memory-mapped; ModelError if the bundle has not been saved yet."""
        if isinstance(self.source, bytes):
            raise ModelError("This attachment is not a file yet.", remedy="Save the bundle and load it again.")
        return self.source

    def read(self) -> bytes:
        """Read the whole content; DigestError if it was changed since the bundle was loaded."""
        data = b"".join(self.chunks())
        if self.sha256 is not None and (seen := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise _changed(self.path, expected=self.sha256, seen=seen, name=self.path.name)
        return data

    def chunks(self) -> Iterator[bytes]:
        """Yield the content piece by piece; NotFoundError if its file does not exist."""
        if isinstance(self.source, bytes):
            yield self.source
            return
        try:
            with self.source.open("rb") as file:
                while piece := file.read(CHUNK_BYTES):
                    yield piece
        except FileNotFoundError as error:
            raise NotFoundError(
                f"The attachment {self.source} does not exist.",
                remedy="Check the path; if the folder of a loaded bundle was deleted, load it again.",
            ) from error


@dataclass(frozen=True)
class VerifiedFiles:
    """The content of a bundle's folder: small files as bytes, attachments as paths, all of them verified."""

    contents: dict[str, bytes]
    attachments: dict[str, Attachment]
    digest: str


def check_attachment_names(names: Mapping[str, Attachment]) -> None:
    """Raise ModelError unless each name is that of a file, without a folder, of a format that holds no code."""
    for name in names:
        if not _NAME.fullmatch(name) or not name.endswith(SUFFIXES):
            raise ModelError(
                f"{name!r} is not a name for an attachment.",
                remedy="Use up to 100 letters, digits, '.', '_' and '-', beginning with a letter or a digit and "
                f"ending with {', '.join(SUFFIXES)}.",
                name=name,
            )


def canonical(value: Any) -> bytes:
    """Serialise as JSON with sorted keys and no spaces: one value, one sequence of bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_files(contents: Mapping[str, bytes], attachments: Mapping[str, Attachment]) -> str:
    """Return the digest that ``write_files`` would give a bundle; nothing is written."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    digests |= {f"{ATTACHMENTS}/{name}": _pass_on(one, None) for name, one in attachments.items()}
    return hashlib.sha256(_listing(digests)).hexdigest()


def write_files(folder: Path, contents: Mapping[str, bytes], attachments: Mapping[str, Attachment]) -> str:
    """Write a bundle's files as ``folder``, which appears whole or not at all, and return its digest."""
    if folder.exists():
        raise ConflictError(f"{folder} already exists.", remedy="Choose another folder; a bundle is never overwritten.")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    with draft_folder(folder) as draft:
        for name, data in contents.items():
            (draft / name).write_bytes(data)
        if attachments:
            (draft / ATTACHMENTS).mkdir()
        for name, attachment in attachments.items():
            digests[f"{ATTACHMENTS}/{name}"] = _pass_on(attachment, draft / ATTACHMENTS / name)
        listing = _listing(digests)
        (draft / DIGESTS).write_bytes(listing)
    return hashlib.sha256(listing).hexdigest()


def read_verified(folder: Path) -> VerifiedFiles:
    """Read every file once and compare its digest before anything is parsed; attachments are hashed, not kept.

    Raises NotFoundError if the folder has no bundle, DigestError for changed, missing or additional files, ModelError
    for an unknown format.
    """
    if not (folder / DIGESTS).is_file():
        raise NotFoundError(f"{folder} is not a model bundle: it has no {DIGESTS}.", remedy="Check the path.")
    listing = (folder / DIGESTS).read_bytes()
    expected = _parse_listing(listing, file=folder / DIGESTS)
    present = _list_files(folder) - {DIGESTS}
    if present != expected.keys():
        missing, extra = sorted(expected.keys() - present), sorted(present - expected.keys())
        raise DigestError(
            f"{folder} does not contain exactly the files of a bundle: missing {missing}, not listed {extra}.",
            remedy="Copy the complete bundle again into an empty folder.",
            missing=missing,
            extra=extra,
        )
    attached = {name for name in expected if name.startswith(f"{ATTACHMENTS}/")}
    contents = {name: (folder / name).read_bytes() for name in sorted(expected.keys() - attached)}
    for name, wanted in sorted(expected.items()):
        seen = hashlib.sha256(contents[name]).hexdigest() if name in contents else _hash_file(folder / name)
        if seen != wanted:
            raise _changed(folder / name, expected=wanted, seen=seen, name=name)
    attachments = {Path(name).name: Attachment((folder / name).absolute(), expected[name]) for name in sorted(attached)}
    return VerifiedFiles(contents, attachments, hashlib.sha256(listing).hexdigest())


def _listing(digests: Mapping[str, str]) -> bytes:
    return canonical({"format": _format_of(digests), "files": dict(digests)})


def _format_of(names: Mapping[str, str]) -> int:
    """The lowest format that has these files."""
    return 1 if names.keys() == set(FILES) else 2


def _parse_listing(listing: bytes, *, file: Path) -> dict[str, str]:
    """Return {file name: digest} of a ``digests.json``; only the canonical bytes of a known format pass."""
    try:
        content = json.loads(listing.decode())
    except ValueError as error:
        raise DigestError(f"{file} is not JSON.", remedy="Copy the bundle again from its source.") from error
    if not isinstance(content, dict) or canonical(content) != listing:
        raise DigestError(f"{file} was changed or damaged.", remedy="Copy the bundle again from its source.")
    if content.get("format") not in FORMATS:
        raise ModelError(
            f"{file} has the bundle format {content.get('format')!r}; this version of cytoray reads formats "
            f"{' and '.join(map(str, FORMATS))}.",
            remedy="Use the version of cytoray that wrote the bundle, or a newer one.",
            format=content.get("format"),
        )
    files = content.get("files")
    if not isinstance(files, dict) or not _are_known(files) or _format_of(files) != content["format"]:
        raise DigestError(
            f"{file} does not list the files of a bundle.",
            remedy=f"Expected {', '.join(FILES)}; format 2 has {CONDITIONS} or {ATTACHMENTS}/NAME as well.",
        )
    return files


def _are_known(files: Mapping[str, Any]) -> bool:
    """Whether the names are those of a bundle, none of which leads out of its folder."""
    others = files.keys() - {*FILES, CONDITIONS}
    attached = all(
        name.startswith(f"{ATTACHMENTS}/") and _NAME.fullmatch(name.removeprefix(f"{ATTACHMENTS}/")) for name in others
    )
    return set(FILES) <= files.keys() and attached and all(isinstance(digest, str) for digest in files.values())


def _list_files(folder: Path) -> set[str]:
    """Names of everything in the folder; of ``attachments`` what it holds."""
    names = {path.name for path in folder.iterdir()}
    if (folder / ATTACHMENTS).is_dir() and (attached := list((folder / ATTACHMENTS).iterdir())):
        names = names - {ATTACHMENTS} | {f"{ATTACHMENTS}/{path.name}" for path in attached}
    return names


def _hash_file(path: Path) -> str:
    if not path.is_file():
        raise DigestError(f"{path} is not a file.", remedy="Copy the bundle again, whole and alone in its folder.")
    return _pass_on(Attachment(path), None)


def _pass_on(attachment: Attachment, target: Path | None) -> str:
    """Copy an attachment piece by piece if there is a target; return its digest, which must be the known one."""
    digest = hashlib.sha256()
    file = None if target is None else target.open("xb")
    try:
        for piece in attachment.chunks():
            digest.update(piece)
            if file is not None:
                file.write(piece)
    finally:
        if file is not None:
            file.close()
    seen = digest.hexdigest()
    if attachment.sha256 not in (None, seen):
        raise _changed(attachment.path, expected=str(attachment.sha256), seen=seen, name=attachment.path.name)
    return seen


def _changed(path: Path, *, expected: str, seen: str, name: str) -> DigestError:
    return DigestError(
        f"{path} has SHA-256 {seen}, the bundle lists {expected}.",
        remedy="The file was changed or damaged; copy the bundle again from its source.",
        file=name,
        expected=expected,
        seen=seen,
    )
