"""Commands whose options are the keys of a configuration: one per field, with its description and default."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic_core import PydanticUndefined

from cytoray.cli.common import STORE, TRACKING, AsJson
from cytoray.config import Config, build_from
from cytoray.tracking import TrackingConfig

_VARIABLES = {"store": STORE, "tracking": TRACKING}


def command_of(kind: type[Config], help_text: str, run: Callable[[Any, bool], None]) -> Callable[..., None]:
    """Build a command for Typer that calls ``run`` with the configuration, and with whether --json was given.

    ``label_key`` becomes --label-key; a tuple is an option that may be repeated; ``tracking`` is --uri.
    """
    fields = {name: info for name, info in kind.model_fields.items() if name != "kind"}

    def command(**given: Any) -> None:
        """Run the command; the docstring is replaced below."""
        as_json = given.pop("as_json")
        values = {name: value for name, value in given.items() if value is not None and value != []}
        if "tracking" in values:
            values["tracking"] = {"uri": values["tracking"]}
        origins = {name: _flag(name) for name in fields}
        run(build_from(kind, values, source="the options", origins=origins), as_json)

    parameters = [_parameter(name, info) for name, info in fields.items()]
    parameters.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, annotation=AsJson, default=False))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = help_text
    return command


def _parameter(name: str, info: Any) -> inspect.Parameter:
    """The option of one field."""
    plain = _plain(info.annotation)
    default = inspect.Parameter.empty if info.default is PydanticUndefined else info.default
    if isinstance(default, tuple):
        default = list(default)
    option = typer.Option(_flag(name), help=info.description, envvar=_VARIABLES.get(name))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[plain, option], default=default)


def _flag(name: str) -> str:
    return "--uri" if name == "tracking" else "--" + name.replace("_", "-")


def _plain(annotation: Any) -> Any:
    """An annotation as Typer knows it: without metadata, a list for a tuple, a URI for the configuration of MLflow."""
    if annotation is TrackingConfig:
        return str
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(parts[0])
    if origin is tuple:
        return list[_plain(parts[0])]  # type: ignore[misc]
    if origin in (Union, types.UnionType):
        return Union[tuple(_plain(part) for part in parts)]  # noqa: UP007
    return annotation
