"""Parse the body of a request in any of its formats into checked cells."""

from __future__ import annotations

from cytoray.serving.config import Limits
from cytoray.serving.payloads import arrow_cells, h5ad_cells, json_cells, npz_cells
from cytoray.serving.payloads.encodings import decode
from cytoray.serving.payloads.matrices import read_options
from cytoray.serving.payloads.media import ARROW, JSON, NPZ, Form
from cytoray.serving.payloads.parsed import ParsedRequest, check_request
from cytoray.serving.payloads.stopping import NEVER, Stop
from cytoray.tasks.messages import CellsRequest, Request


def parse(body: bytes, form: Form, *, kind: type[CellsRequest], limits: Limits, stop: Stop = NEVER) -> ParsedRequest:
    """Read and check a body of ``kind``; RequestError has the code, pointer and sample of the first mistake."""
    content = decode(body, form.encoding, limits=limits, stop=stop)
    stop.check()
    return check_request(_read(content, form, kind=kind, limits=limits, stop=stop), limits=limits)


def parse_message(body: bytes, form: Form, *, kind: type[Request], limits: Limits, stop: Stop = NEVER) -> Request:
    """Read and check a body of ``kind`` that is not about cells; errors as in ``parse``."""
    return json_cells.read_message(decode(body, form.encoding, limits=limits, stop=stop), kind=kind, limits=limits)


def _read(body: bytes, form: Form, *, kind: type[CellsRequest], limits: Limits, stop: Stop) -> ParsedRequest:
    if form.media_type == JSON:
        return json_cells.read_cells(body, kind=kind, limits=limits)
    if form.media_type == ARROW:
        matrix, members = arrow_cells.read_matrix(body, limits=limits)
        return matrix.as_request(read_options(kind, form.options, members=members))
    if form.media_type == NPZ:
        asked = read_options(kind, form.options)
        return npz_cells.read_matrix(body, limits=limits, stop=stop).as_request(asked)
    asked = read_options(kind, form.options, ignored=h5ad_cells.OPTIONS)
    return h5ad_cells.read_matrix(body, form.options, limits=limits, stop=stop).as_request(asked)
