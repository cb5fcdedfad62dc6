"""What a client is asked: an endpoint, cells or none, further members of the request, and how a call begins."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from cytoray.errors import RequestError
from cytoray.serving.client.chunks import IncompleteError, Partial
from cytoray.serving.sending import CellSource, cells_of_adata, cells_of_frame, check_cells
from cytoray.tasks import find_endpoint
from cytoray.tasks.endpoint import Endpoint
from cytoray.tasks.messages import CellsRequest

Resume = Partial | IncompleteError | None


@dataclass(frozen=True, eq=False)
class Asked:
    """One call: cells (None if the endpoint is not about cells), and the further members of its requests."""

    endpoint: Endpoint[Any, Any]
    source: CellSource | None
    members: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    resume: Partial | None = None

    @property
    def identity(self) -> str:
        """A digest of what is asked about, without the values of the cells."""
        assert self.source is not None
        num_cells = self.source.num_cells
        ends = [self.source.name(row) for row in (0, num_cells - 1)] if num_cells else []
        named = [self.endpoint.name, self.model, self.members, num_cells, ends, self.source.genes]
        return hashlib.sha256(json.dumps(named, default=str, sort_keys=True).encode()).hexdigest()

    def started(self) -> Partial | None:
        """Return the answers that there are already; RequestError if they are about something else."""
        if self.resume is not None and self.resume.asked != self.identity:
            raise RequestError(
                "`resume` holds answers to other cells, genes or options.",
                remedy="Give it to the same call that failed, or call without it.",
            )
        return self.resume


def ask_endpoint(
    name: str, source: CellSource | None, members: dict[str, Any], *, model: str | None, resume: Resume = None
) -> Asked:
    """Build the call of an endpoint by name; RequestError if it is unknown."""
    if isinstance(resume, IncompleteError):
        resume = resume.partial
    return Asked(find_endpoint(name), source, members, model, resume)


def is_anndata(given: Any) -> bool:
    """Return whether something is an AnnData, without importing it."""
    return hasattr(given, "obs_names") and hasattr(given, "var_names")


def source_of(name: str, given: tuple[Any, ...], options: dict[str, Any]) -> CellSource:
    """Return the cells that the method of an endpoint was given; takes what is about them from ``options``."""
    of_adata = {key: options.pop(key, default) for key, default in (("matrix", "X"), ("gene_names", "index"))}
    of_matrix = {key: options.pop(key) for key in ("ensembl_ids", "ids") if key in options}
    if len(given) == 1 and is_anndata(given[0]):
        return cells_of_adata(given[0], **of_adata)
    if len(given) == 1 and hasattr(given[0], "columns") and hasattr(given[0], "index"):
        return cells_of_frame(given[0])
    if len(given) == 2:
        return check_cells(*given, **of_matrix)
    raise RequestError(
        f"{name} was given {', '.join(type(one).__name__ for one in given) or 'no cells'}.",
        remedy=f"Write client.{name}(adata) or client.{name}(genes, matrix).",
    )


def ask_method(name: str, given: tuple[Any, ...], options: dict[str, Any], *, model: str | None) -> Asked:
    """Build the call of an endpoint's method from its arguments."""
    members = dict(options)
    resume, model = members.pop("resume", None), members.pop("model", model)
    kind = find_endpoint(name).request
    if not issubclass(kind, CellsRequest):
        own = (member for member in kind.model_fields if member != "model")  # which comes first, by inheritance
        named = dict(zip(own, given, strict=False))
        return ask_endpoint(name, None, {**named, **members}, model=model)
    return ask_endpoint(name, source_of(name, given, members), members, model=model, resume=resume)
