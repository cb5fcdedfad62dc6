"""Gene sets by name, or from a ``.gmt`` file on a disk or in a bucket."""

from __future__ import annotations

import gzip
import zlib

from cytoray import storage
from cytoray.errors import ConfigError
from cytoray.tokens.gene_sets import GeneSets, load_gene_sets, parse_gmt, shipped_gene_sets

_GZIP = b"\x1f\x8b"


def resolve_gene_sets(source: str) -> GeneSets:
    """Load a packaged collection by its name (``go_bp``), else read ``source`` as a ``.gmt`` file."""
    return load_gene_sets(source) if source in shipped_gene_sets() else read_gmt(source)


def read_gmt(uri: str, *, name: str | None = None) -> GeneSets:
    """Read a ``.gmt`` file, compressed with gzip or not, from a path or ``s3://``; it is named after the file.

    Raises ConfigError if it is missing or something else.
    """
    data = storage.find_bytes(uri)
    if data is None:
        raise ConfigError(
            f"{uri} does not exist.",
            remedy=f"Check the path, or use one of the packaged gene sets: {', '.join(shipped_gene_sets())}.",
        )
    name = name or uri.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".gmt")
    try:
        text = (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(
            f"{uri} is not a .gmt file: it is neither UTF-8 text nor such text compressed with gzip.",
            remedy="Use a .gmt or .gmt.gz file, such as those of MSigDB, Reactome or WikiPathways.",
        ) from error
    return parse_gmt(text, name=name, source=uri)
