"""What schemathesis cannot know from the document, by name; it loads this by SCHEMATHESIS_HOOKS.

``valid_requests_are_answered`` stands for its check ``positive_data_acceptance``, without the cases of SAID_ELSEWHERE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

JSON = "application/json"
OF_OTHER_BODIES = frozenset(("matrix", "gene_names", "include_embedding", "batch", "proteins"))


def _cannot_be_answered(case: Any, response: Any) -> bool:
    """Valid by form: 422 and 413 say what about it cannot be answered, such as genes that the model does not know."""
    return response.status_code in (413, 422)


def _has_options_of_other_bodies(case: Any, response: Any) -> bool:
    """OpenAPI cannot say that a parameter goes with some types of bodies only."""
    return case.media_type == JSON and bool(OF_OTHER_BODIES & set(case.query or {}))


def _is_not_encoded(case: Any, response: Any) -> bool:
    """OpenAPI cannot say how a body is encoded: generated ones are not, whatever Content-Encoding says."""
    found = {name.lower(): value for name, value in (case.headers or {}).items()}
    return found.get("content-encoding", "identity") != "identity"


def _names_two_models(case: Any, response: Any) -> bool:
    """OpenAPI cannot say that the model in the path, the query and the body is the same."""
    body = case.body if isinstance(case.body, dict) else {}
    places = (case.path_parameters or {}, case.query or {}, body)
    return len({place["model"] for place in places if isinstance(place.get("model"), str)}) > 1


def _has_integers_with_a_point(case: Any, response: Any) -> bool:
    """To JSON Schema 1.0 is an integer; the service wants it written as one."""
    return _has(case.body, lambda value: isinstance(value, float) and value.is_integer())


def _has_parameters_of_a_job(case: Any, response: Any) -> bool:
    """Which parameters a job may have depends on its task: they are members of its request."""
    return case.operation.label == "POST /v1/jobs" and isinstance(case.body, dict) and bool(case.body.get("parameters"))


def _is_any_file(case: Any, response: Any) -> bool:
    """OpenAPI does not describe the contents of files: generated ones are not Arrow, npz or h5ad."""
    return case.media_type is not None and case.media_type != JSON and "/v1/uploads" not in case.operation.label


SAID_ELSEWHERE: tuple[Callable[[Any, Any], bool], ...] = (
    _cannot_be_answered,
    _has_options_of_other_bodies,
    _is_not_encoded,
    _names_two_models,
    _has_integers_with_a_point,
    _has_parameters_of_a_job,
    _is_any_file,
)


def _has(value: Any, test: Callable[[Any], bool]) -> bool:
    if isinstance(value, dict):
        return any(_has(one, test) for one in value.values())
    if isinstance(value, list):
        return any(_has(one, test) for one in value)
    return test(value)


@schemathesis.check
def valid_requests_are_answered(ctx: Any, response: Any, case: Any) -> bool | None:
    """Check that a request which is valid by the document is not refused as malformed."""
    if any(is_so(case, response) for is_so in SAID_ELSEWHERE):
        return None
    return positive_data_acceptance(ctx, response, case)
