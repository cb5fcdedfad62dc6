"""``cytoray models attach``: a bundle that carries what was fitted with its model; an option per attachment."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cytoray.cli.common import STORE, TRACKING, AsJson, print_answer, tracking_of
from cytoray.tasks import task_attachments

MODEL = "Bundle or public checkpoint (folder or s3://…), run:NAME, models:/NAME@ALIAS or models:/NAME/VERSION."
_FIXED: dict[str, tuple[Any, Any]] = {  # name: annotation and default
    "model": (Annotated[str, typer.Argument(help=MODEL, show_default=False)], inspect.Parameter.empty),
    "out": (
        Annotated[Path, typer.Option(help="Local folder for the new bundle; must not exist.", show_default=False)],
        inspect.Parameter.empty,
    ),
    "store": (Annotated[str | None, typer.Option(envvar=STORE, help="Root of everything, for run:NAME.")], None),
    "uri": (Annotated[str | None, typer.Option("--uri", envvar=TRACKING, help="MLflow, for models:/….")], None),
    "as_json": (AsJson, False),
}


def attach_command() -> Callable[..., None]:
    """Build the command, with an option for each attachment of the table of tasks."""
    attachments = task_attachments()

    def attach(**given: Any) -> None:
        """Write a bundle that also carries what was fitted with its model: it answers alone, over HTTP and offline."""
        places = {name: given[name] for name in attachments if given[name] is not None}
        _attach(given["model"], places, given)

    options = {name: (Annotated[str | None, typer.Option(help=each.help)], None) for name, each in attachments.items()}
    first = dict(list(_FIXED.items())[:2])
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in {**first, **options, **_FIXED}.items()
    ]
    attach.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    attach.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return attach


def _attach(model: str, places: dict[str, str], given: dict[str, Any]) -> None:
    from cytoray.registry.opening import REGISTERED, open_model
    from cytoray.tasks.attaching import attach

    uri = given["uri"]
    tracking = tracking_of(uri) if uri is not None and model.startswith(REGISTERED) else None
    opened = open_model(model, store=given["store"], tracking=tracking)
    digest = attach(opened.bundle, places, out=given["out"])
    answer = {"bundle": str(given["out"]), "digest": digest, "model": opened.digest, "attached": places}
    print_answer(answer, [f"bundle {given['out']}  {digest}"], as_json=given["as_json"])
