"""Write a configuration class as commented YAML: keys with a value, the others commented out with their defaults."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cytoray.mistakes import submodel

WIDTH = 118
COLUMN = 44  # where comments begin, if the key leaves room
INDENT = "  "


def render(kind: type[BaseModel], values: Mapping[str, Any], *, about: str) -> str:
    """Return the text of a file for ``kind``, which is valid if ``values`` contain all keys without a default."""
    lines = [f"# {line}" for line in textwrap.wrap(about, WIDTH - 2)]
    lines.append("# Keys that are commented out show their defaults; `cytoray config check FILE` checks all values.")
    return "\n".join([*lines, *_fields(kind, values, "")]) + "\n"


def _fields(kind: type[BaseModel], values: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Yield the lines of a mapping: first the keys that have a value, in the order of the class, then the others."""
    names = sorted(kind.model_fields, key=lambda name: name != "kind")  # a file begins with its kind
    known = {name: kind.model_fields[name] for name in names if name in values}
    for name, info in known.items():
        yield from _field(name, info, values[name], indent)
    for name, info in kind.model_fields.items():
        if name not in values and not info.is_required():
            default = info.get_default(call_default_factory=True)
            yield from _commented(name, info, default, indent)


def _field(name: str, info: FieldInfo, value: Any, indent: str) -> Iterator[str]:
    """Yield the lines of a key that has a value."""
    inner = submodel(info.annotation)
    if isinstance(value, Mapping) and inner is not None:
        yield _with_comment(f"{indent}{name}:", info.description)
        yield from _fields(inner, value, indent + INDENT)
    elif isinstance(value, list | tuple) and inner is not None and all(isinstance(item, Mapping) for item in value):
        yield _with_comment(f"{indent}{name}:", info.description)
        for item in value:
            lines = list(_fields(inner, item, f"{indent}{INDENT}{INDENT}"))
            yield f"{indent}{INDENT}- {lines[0].lstrip()}"
            yield from lines[1:]
    else:
        yield _with_comment(f"{indent}{name}: {_scalar(value)}", info.description)


def _commented(name: str, info: FieldInfo, default: Any, indent: str) -> Iterator[str]:
    """Yield a key with its default, commented out; of a mapping every key."""
    if isinstance(default, BaseModel):
        yield _with_comment(f"{indent}# {name}:", info.description)
        for inner, about in type(default).model_fields.items():
            for line in _commented(inner, about, getattr(default, inner), ""):
                yield f"{indent}#   {line.removeprefix('# ')}"
        return
    yield _with_comment(f"{indent}# {name}: {_scalar(_plain(default))}", info.description)


def _plain(value: Any) -> Any:
    """Return a default as JSON data."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _scalar(value: Any) -> str:
    """Write a value on one line, as YAML reads it back."""
    if isinstance(value, str):
        text = yaml.safe_dump(value, width=10_000, allow_unicode=True).splitlines()[0]
        return text if yaml.safe_load(text) == value else json.dumps(value)
    if isinstance(value, float) and not isinstance(value, bool):
        return f"{value:.1e}" if value and abs(value) < 1e-4 and float(f"{value:.1e}") == value else repr(value)
    return json.dumps(value)


def _with_comment(text: str, description: str | None) -> str:
    """Put a description behind a key; it is cut at a sentence or a word if the line would become long."""
    if not description:
        return text
    room = WIDTH - max(len(text) + 2, COLUMN) - 2
    comment = description.rstrip(".")
    if len(comment) > room:
        first = comment.split(": ")[0].split("; ")[0].split(". ")[0]
        comment = first if len(first) <= room else textwrap.shorten(comment, max(room, 20), placeholder=" …")
    return f"{text:<{COLUMN}}# {comment}" if len(text) < COLUMN else f"{text}  # {comment}"
