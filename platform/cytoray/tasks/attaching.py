"""Attach what was fitted with a model, such as a reference, to its bundle: a new bundle, which answers alone.

digest = attach(opened.bundle, {"reference": "s3://bucket/reference"}, out=Path("with-reference"))
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from cytoray import storage
from cytoray.errors import ConfigError, ConflictError
from cytoray.model.bundle import Attachment, ModelBundle, save_bundle
from cytoray.tasks import task_attachments


def attach(bundle: ModelBundle, places: Mapping[str, str], *, out: Path) -> str:
    """Write a bundle that also has what lies at ``places``, by the name of the attachment; return its digest.

    An attachment of the same name is replaced. Files are copied piece by piece and never held in memory. Raises
    ConfigError without any place or for an unknown name, ConflictError if ``out`` exists, and whatever the attachment
    raises if it does not fit the model.
    """
    known = task_attachments()
    if not places or (unknown := sorted(places.keys() - known.keys())):
        problem = f"Unknown attachments {', '.join(unknown)}." if places else "Nothing to attach."
        raise ConfigError(problem, remedy=f"Give {', '.join(f'--{name}' for name in known)}, or several of them.")
    if out.exists():
        raise ConflictError(f"{out} already exists.", remedy="Choose another folder; a bundle is never overwritten.")
    lineage, attachments = dict(bundle.lineage), dict(bundle.attachments)
    with ExitStack() as stack:
        for name, place in places.items():
            files = stack.enter_context(known[name].collect.load()(place, bundle))
            kept = {file: one for file, one in attachments.items() if not file.startswith(f"{name}.")}
            attachments = kept | {f"{name}.{file}": one for file, one in files.items()}
            lineage[name] = _digest_of(files)
        return save_bundle(replace(bundle, attachments=attachments, lineage=lineage, digest=None), out)


@contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """Give a folder or s3:// prefix as a local folder for the length of a ``with`` block."""
    if not storage.is_remote(uri):
        yield storage.local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="cytoray-attach-") as scratch:
        storage.download_folder(uri, Path(scratch) / "copy")
        yield Path(scratch) / "copy"


def attached_files(bundle: ModelBundle, name: str) -> dict[str, Attachment]:
    """Return the files of an attachment by their own names; empty if the bundle does not have it."""
    start = f"{name}."
    return {file.removeprefix(start): one for file, one in bundle.attachments.items() if file.startswith(start)}


def _digest_of(files: Mapping[str, Attachment]) -> str:
    """The SHA-256 of the manifest, the only JSON file, which lists the digests of the others."""
    (manifest,) = [one for name, one in files.items() if name.endswith(".json")]
    return hashlib.sha256(manifest.read()).hexdigest()
