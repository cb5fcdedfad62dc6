"""Parse the body of a request in any of its formats into checked cells."""

from __future__ import annotations

from cytoray.serving.config import Limits
from cytoray.serving.payloads.json_cells import read_cells
from cytoray.serving.payloads.media import Form
from cytoray.serving.payloads.parsed import ParsedRequest, check_request
from cytoray.tasks.messages import CellsRequest


def parse(body: bytes, form: Form, *, kind: type[CellsRequest], limits: Limits) -> ParsedRequest:
    """Read and check a body of ``kind``; RequestError has the code, pointer and sample of the first mistake."""
    return check_request(read_cells(body, kind=kind, limits=limits), limits=limits)
