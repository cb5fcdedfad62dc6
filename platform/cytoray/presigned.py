"""URLs by which anybody can read or write one object of a bucket for a while."""

from __future__ import annotations

from cytoray.s3 import call
from cytoray.stores import explained, is_remote, resolve


def presign(uri: str, *, expires_s: int, write: bool = False, save_as: str = "") -> str:
    """Return a URL by which anybody can read an object, or write one, until it expires.

    Browsers save what they read as ``save_as``.
    """
    assert is_remote(uri), f"{uri} is not on S3"
    system, path = resolve(uri)
    method = "put_object" if write else "get_object"
    options = {"ResponseContentDisposition": f'attachment; filename="{save_as}"'} if save_as else {}
    with explained(uri):
        return str(call(system, "url", path, expires=expires_s, client_method=method, **options))
