"""The reference of configuration: a page per kind, from the models that read the files."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_parts import MARK, code, escape, heading, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cytoray.serving.deploy_file import DeployFile
from cytoray.stages.config import ModelShapeConfig, load_stage_config, stage_configs

ROOT = Path(__file__).parents[2]
BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}
HEAD = ("Key", "Type", "Default", "Description")


@dataclass(frozen=True)
class Key:
    """One key of a file; ``model`` is the class of its value if that has keys of its own."""

    path: str
    type: str
    default: str
    description: str
    model: type[BaseModel] | None


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a class, not those below them. ``[]`` marks a list, ``{}`` a mapping by name."""
    for name, field in model.model_fields.items():
        inner, mark = nested(field.annotation)
        yield Key(
            path=f"{prefix}{field.alias or name}{mark}",
            type="path or URI" if "_absolute" in repr(field.metadata) else type_text(field.annotation),
            default=default_text(field),
            description=" ".join([escape(field.description or ""), *limits(field)]).strip(),
            model=inner,
        )


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield every nested class below a class with the path to it, parents first."""
    for key in keys(model, prefix):
        if key.model is not None:
            yield key.path, key.model
            yield from sections(key.model, f"{key.path}.")


def nested(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """Return the class of configuration inside a type, and how it is repeated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin = typing.get_origin(annotation)
    for inner in typing.get_args(annotation):
        model, mark = nested(inner)
        if model is not None:
            own = "[]" if origin in (tuple, list) else "{}" if origin is dict else ""
            return model, own + mark
    return None, ""


def type_text(annotation: Any) -> str:
    """Name a type as a person who writes YAML would."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return "path or URI" if "_absolute" in repr(inner[1:]) else type_text(inner[0])
    if origin is typing.Literal:
        return ", ".join(code(yaml_text(one)) for one in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(one) for one in inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"list of {len(inner)}: {', '.join(type_text(one) for one in inner)}"
    if origin in (tuple, list):
        return f"list of {type_text(inner[0])}"
    if origin is dict:
        return f"mapping of {type_text(inner[0])} to {type_text(inner[1])}"
    names: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true, false", type(None): "null"}
    if annotation in names:
        return names[annotation]
    return "section" if isinstance(annotation, type) and issubclass(annotation, BaseModel) else "any"


def default_text(field: FieldInfo) -> str:
    """Format a default; a section that is there by default has the defaults of its own keys."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return "its own"
    if isinstance(value, tuple | list):
        return code(f"[{', '.join(yaml_text(one) for one in value)}]") if not value or _plain(value) else "its own"
    return code(yaml_text(value))


def _plain(values: Any) -> bool:
    return not any(isinstance(value, BaseModel) for value in values)


def yaml_text(value: object) -> str:
    """Write a scalar as YAML does."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else '""'


def limits(field: FieldInfo) -> Iterator[str]:
    """Yield the range of a number and the form of a text, as sentences."""
    found = [
        form.format(getattr(one, name)) for one in field.metadata for name, form in BOUNDS.items() if hasattr(one, name)
    ]
    if found:
        yield f"Allowed: {' and '.join(found)}."
    for one in field.metadata:
        if getattr(one, "pattern", None):
            yield f"Form: {code(one.pattern)}."
        if getattr(one, "min_length", None):
            yield "Not empty."
        if getattr(one, "max_length", None):
            yield f"Length: at most {one.max_length}."


def page(kind: str, model: type[BaseModel], examples: list[str]) -> str:
    """Write the page of one kind."""
    text = MARK + heading(1, kind) + f"{escape((model.__doc__ or '').strip().splitlines()[0])}\n\n"
    if examples:
        text += f"Examples with a comment for every key: {', '.join(map(code, examples))}. "
    text += "Every key can be given on the command line: `--set KEY=VALUE`.\n\n"
    for prefix, each in [("", model), *sections(model)]:
        if prefix:
            title = (each.__doc__ or "").strip().splitlines()[0]
            text += heading(2, prefix, anchor=_anchor(prefix)) + f"{escape(title)}\n\n"
        start = f"{prefix}." if prefix else ""
        text += table(HEAD, (_row(key) for key in sorted(keys(each, start), key=lambda key: key.path != "kind")))
    return text


def _row(key: Key) -> tuple[str, str, str, str]:
    name = f"[{code(key.path)}](#{_anchor(key.path)})" if key.model is not None else code(key.path)
    return name, key.type, key.default, key.description


def _anchor(path: str) -> str:
    return path.replace("[]", "-list").replace("{}", "-map").replace(".", "-")


def all_kinds() -> dict[str, type[BaseModel]]:
    """Return every kind of file: those of the stages, the shape of a model, and a file of Ray Serve."""
    return {**stage_configs(), "model": ModelShapeConfig, "deploy": DeployFile}


def examples() -> dict[str, list[str]]:
    """Return the files of configs/ and serve/ by kind."""
    found: dict[str, list[str]] = {}
    for path in sorted([*(ROOT / "configs").glob("*/*.yaml"), *(ROOT / "serve").glob("*.yaml")]):
        config = load_stage_config(path)
        kind = "deploy" if isinstance(config, DeployFile) else getattr(config, "kind", "deploy")
        found.setdefault(kind, []).append(path.relative_to(ROOT).as_posix())
    return found


def write(folder: Path) -> None:
    """Write ``configuration/``: an index and a page per kind."""
    folder.mkdir(parents=True, exist_ok=True)
    shown, rows = examples(), []
    for kind, model in all_kinds().items():
        (folder / f"{kind}.md").write_text(page(kind, model, shown.get(kind, [])), encoding="utf-8")
        summary = escape((model.__doc__ or "").strip().splitlines()[0])
        rows.append((f"[{code(kind)}]({kind}.md)", summary, ", ".join(map(code, shown.get(kind, [])))))
    (folder / "index.md").write_text(
        MARK + INDEX + table(("Kind", "What it configures", "Examples"), rows), encoding="utf-8"
    )


INDEX = """# Configuration

A file of configuration is YAML that starts with its `kind`; the pages list every key of each kind. Unknown keys, values
of another type and values out of range are errors, and all mistakes in a file are reported at once with file, line and
key path:

```bash
cytoray config check configs/*/*.yaml                     # nothing is started
cytoray config show configs/pretrain/quickstart.yaml      # with all defaults
cytoray pretrain --config configs/pretrain/quickstart.yaml --set train.num_steps=20
```

A key without a default is required. Numbers need no quotes; paths are relative to the working folder or `s3://` URIs.
The name of a YAML file (`model: ../model/tiny.yaml`) in place of a section reads the section from that file.

"""
