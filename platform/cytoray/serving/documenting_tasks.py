"""OpenAPI entries of the routes that answer by a model: bodies in all formats, options, answers and problems."""

from __future__ import annotations

from typing import Any

from cytoray.serving.documenting import (
    binary_content,
    header_parameter,
    headers,
    json_content,
    path_parameter,
    problems,
    query_parameter,
)
from cytoray.serving.payloads.media import ANSWERS, BODIES, ENCODINGS, JSON, MODEL
from cytoray.tasks.endpoint import Endpoint
from cytoray.tasks.messages import CellsRequest

MODEL_PARAMETER = query_parameter(
    MODEL,
    "The model that is asked: NAME, NAME@ALIAS or NAME/VERSION; default: the first of the service.",
    {"type": "string"},
)
_MODEL_IN_PATH = path_parameter(
    MODEL,
    "The model that is asked: NAME, NAME@ALIAS or NAME/VERSION. Query and body need not name it, and no other one.",
)
_ENCODING = header_parameter("Content-Encoding", "Of the body.", {"type": "string", "enum": list(ENCODINGS)})
_OF_MATRIX = (
    query_parameter(
        "matrix",
        "Of an h5ad body: the matrix to read. Not with other bodies.",
        {"type": "string", "enum": ["X", "raw.X"], "default": "X"},
    ),
    query_parameter(
        "gene_names",
        "Of an h5ad body: the column of var that names the genes, or index. Not with other bodies.",
        {"type": "string", "default": "index"},
    ),
)
_MEMBERS_OF_BODIES = frozenset(CellsRequest.model_fields)  # which are arrays in other formats than JSON
_COMMON = ("malformed_payload", "unknown_model", "unsupported_media_type", "not_acceptable")
_ABOUT_CELLS = ("use_jobs", "unknown_genes", "bad_values", "bad_matrix")


def task_operation(endpoint: Endpoint[Any, Any], *, of_model: bool = False) -> dict[str, Any]:
    """Return the entries of an endpoint's route, which parses its requests and encodes its answers itself.

    ``of_model``: the route names a model in its path.
    """
    about_cells = issubclass(endpoint.request, CellsRequest)
    bodies = json_content(endpoint.request.__name__, example=endpoint.example)
    answers = json_content(endpoint.response.__name__)
    parameters = [_ENCODING, _MODEL_IN_PATH if of_model else MODEL_PARAMETER]
    if about_cells:
        bodies |= binary_content(name for name in BODIES if name != JSON)
        answers |= binary_content(name for name in ANSWERS if name != JSON)
        parameters += [*_OF_MATRIX, *_options(endpoint)]
    sent = headers("X-Model", "X-Cells", "Server-Timing")
    codes = (*_COMMON, *(_ABOUT_CELLS if about_cells else ()), *endpoint.problems)
    return {
        "responses": {
            200: {"description": "The answer, in the order of the request.", "content": answers} | {"headers": sent}
        },
        "openapi_extra": problems(*codes)
        | {"parameters": parameters, "requestBody": {"required": True, "content": bodies}},
    }


def _options(endpoint: Endpoint[Any, Any]) -> list[dict[str, Any]]:
    """Return the members of a request about cells that are parameters if its body is not JSON."""
    schemas = endpoint.request.model_json_schema()["properties"]
    return [
        query_parameter(
            name,
            f"If the body is not JSON: the member `{name}` of {endpoint.request.__name__}; lists in JSON.",
            {"type": "boolean" if schema.get("type") == "boolean" else "string"},
        )
        for name, schema in schemas.items()
        if name not in _MEMBERS_OF_BODIES
    ]
