"""The reference that a bundle carries: attached when it fits the model, and loaded where the bundle answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cytoray.errors import DigestError, ModelError
from cytoray.model.bundle import Attachment, ModelBundle, compute_weights_digest
from cytoray.tasks.attaching import attached_files, local_folder
from cytoray.tasks.mapping.reference import (
    FILES,
    MAP,
    Reference,
    check_maker,
    load_reference,
    parse_about,
    read_about,
    read_files,
)

NAME = "reference"


@contextmanager
def collect_reference(uri: str, bundle: ModelBundle) -> Iterator[Mapping[str, Attachment]]:
    """Give the files of a reference to be attached to ``bundle``.

    Raises ModelError if another model or vocabulary built it, and whatever ``load_reference`` raises.
    """
    about, _ = read_about(uri)
    _check_fit(about, bundle)
    with local_folder(uri) as folder:
        load_reference(str(folder))  # what a service could not load is found now
        files = {name: Attachment(folder / name, about["files"][name]) for name in FILES}
        yield {**files, MAP: Attachment((folder / MAP).read_bytes())}


def attached_reference(bundle: ModelBundle) -> Reference | None:
    """Load the reference of a bundle from the files that were verified with it; None if it has none.

    The index stays in its file. Raises ModelError if the reference does not fit the bundle, DigestError if its files
    are not those that it lists.
    """
    files = attached_files(bundle, NAME)
    if MAP not in files:
        return None
    data = files[MAP].read()
    about = parse_about(data, name=f"{NAME}.{MAP}")
    for name, expected in about["files"].items():
        if name not in files or files[name].sha256 not in (None, expected):
            raise DigestError(
                f"{NAME}.{name} of the bundle is not the file that {NAME}.{MAP} lists.",
                remedy="Attach the reference again.",
            )
    _check_fit(about, bundle)
    return read_files({name: files[name].path for name in FILES}, about, hashlib.sha256(data).hexdigest())


def _check_fit(about: Mapping[str, object], bundle: ModelBundle) -> None:
    """Refuse a reference of another vocabulary, or with embeddings of other weights."""
    own = bundle.vocabulary.digest()
    if about["vocabulary"] != own:
        raise ModelError(
            f"The reference was built over another vocabulary ({str(about['vocabulary'])[:16]}) than that of this "
            f"model ({own[:16]}).",
            remedy="Build the reference again with this model.",
            expected=about["vocabulary"],
            seen=own,
        )
    if about["model"] is not None:
        check_maker(about, compute_weights_digest(bundle), "this model")
