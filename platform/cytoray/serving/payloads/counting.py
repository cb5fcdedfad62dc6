"""Count the cells of a body without reading it, to decide whether to read it at all."""

from __future__ import annotations

from cytoray.serving.payloads import arrow_cells
from cytoray.serving.payloads.media import ARROW, JSON, Form

_INDICES = b'"i"'  # the member that each cell of a JSON body has


def count_cells(body: bytes, form: Form) -> int | None:
    """Return about how many cells a body has; None if that takes too long to find out.

    Exact for Arrow; of JSON it may be too many by texts that are the name of the member.
    """
    if form.encoding != "identity":
        return None
    if form.media_type == JSON:
        return body.count(_INDICES)
    return arrow_cells.peek_num_cells(body) if form.media_type == ARROW else None
