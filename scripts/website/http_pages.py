"""The reference of the HTTP API: pages of tables from docs/openapi.json, which a test compares with the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown_parts import MARK, code, escape, heading, table

ROOT = Path(__file__).parents[2]
GROUPS = {  # title: (file, prefixes of its routes)
    "Cells and genes": (
        "answers",
        (
            "/v1/annotate",
            "/v1/embed",
            "/v1/genes",
            "/v1/integrate",
            "/v1/map",
            "/v1/networks",
            "/v1/perturb",
            "/v1/proteins",
        ),
    ),
    "Jobs and uploads": ("jobs", ("/v1/jobs", "/v1/uploads")),
    "Models": ("models", ("/v1/models", "/v1/model", "/v1/webhooks")),
    "Health and metrics": ("health", ("/",)),
}
Schema = dict[str, Any]


def write(folder: Path) -> None:
    """Write ``http/``: an index, a page per group of routes, and one of the types."""
    folder.mkdir(parents=True, exist_ok=True)
    document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    routes: dict[str, list[tuple[str, str, Schema]]] = {title: [] for title in GROUPS}
    for path, operations in document["paths"].items():
        title = next(title for title, (_, prefixes) in GROUPS.items() if path.startswith(prefixes))
        routes[title] += [(method.upper(), path, operation) for method, operation in operations.items()]
    index = MARK + INDEX.format(description=escape(document["info"]["description"]))
    for title, (name, _) in GROUPS.items():
        text = MARK + heading(1, title) + "".join(map(_operation, routes[title]))
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
        rows = [
            (f"[`{method} {path}`]({name}.md#{_anchor(method, path)})", _first(one))
            for method, path, one in routes[title]
        ]
        index += heading(2, title) + table(("Route", "What it does"), rows)
    schemas = document["components"]["schemas"]
    types = "".join(_schema(name, schemas[name]) for name in sorted(schemas, key=_short))
    (folder / "types.md").write_text(MARK + "# Types of requests and answers\n\n" + types, encoding="utf-8")
    (folder / "index.md").write_text(index, encoding="utf-8")


def _operation(route: tuple[str, str, Schema]) -> str:
    method, path, operation = route
    text = heading(2, f"`{method} {path}`", anchor=_anchor(method, path))
    text += f"{escape(operation.get('description') or operation['summary'])}\n\n"
    parameters = [
        (
            code(one["name"]),
            one["in"],
            _type(one["schema"]),
            _default(one["schema"]),
            escape(one.get("description", "")),
        )
        for one in operation.get("parameters", [])
    ]
    if parameters:
        text += table(("Parameter", "In", "Type", "Default", "Description"), parameters)
    if body := operation.get("requestBody"):
        text += "**Request**\n\n" + table(("Content-Type", "Type"), _contents(body))
    answers = [
        (code(status), media, kind, escape(answer.get("description", "")))
        for status, answer in operation["responses"].items()
        for media, kind in _contents(answer) or [("", "")]
    ]
    return text + "**Answers**\n\n" + table(("Status", "Content-Type", "Type", "Description"), answers)


def _contents(holder: Schema) -> list[tuple[str, str]]:
    return [(code(media), _type(each.get("schema", {}))) for media, each in holder.get("content", {}).items()]


def _schema(name: str, schema: Schema) -> str:
    text = heading(2, _short(name), anchor=_type_anchor(name)) + f"{escape(schema.get('description', ''))}\n\n"
    required = schema.get("required", ())
    rows = [
        (
            code(key),
            _type(one),
            "required" if key in required else _default(one),
            escape(" ".join([one.get("description", ""), *_limits(one)]).strip()),
        )
        for key, one in schema.get("properties", {}).items()
    ]
    return text + (table(("Member", "Type", "Default", "Description"), rows) if rows else f"{_type(schema)}\n\n")


def _type(schema: Schema) -> str:
    """Name the type of a schema, with links to named ones."""
    if ref := schema.get("$ref"):
        name = ref.rpartition("/")[2]
        return f"[{_short(name)}](types.md#{_type_anchor(name)})"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(one) for one in options)
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return ", ".join(code(one) for one in values)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or schema.get('prefixItems', [{}])[0])}"
    if isinstance(inner := schema.get("additionalProperties"), dict):
        return f"mapping of name to {_type(inner)}"
    kind = str(schema.get("type", "any"))
    return f"{kind} ({schema['format']})" if "format" in schema else kind


def _limits(schema: Schema) -> Iterator[str]:
    """Yield ranges and lengths, as sentences."""
    names = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    units = {
        "minItems": "at least {} entries",
        "maxItems": "at most {} entries",
        "minLength": "at least {} characters",
        "maxLength": "at most {} characters",
    }
    found = [f"{text} {schema[key]}" for key, text in names.items() if key in schema]
    found += [text.format(schema[key]) for key, text in units.items() if key in schema]
    if found:
        yield f"({', '.join(found)})"


def _default(schema: Schema) -> str:
    return code(json.dumps(schema["default"])) if "default" in schema else ""


def _first(operation: Schema) -> str:
    return escape(str(operation.get("description") or operation["summary"]).partition(". ")[0])


def _short(name: str) -> str:
    """``cytoray__tasks__mapping__answers__Neighbour`` is ``Neighbour (mapping)``."""
    parts = name.split("__")
    return name if len(parts) == 1 else f"{parts[-1]} ({parts[-3]})"


def _type_anchor(name: str) -> str:
    return name.lower().replace("__", "-")


def _anchor(method: str, path: str) -> str:
    return "-".join([method.lower(), *path.strip("/").replace("{", "").replace("}", "").split("/")])


INDEX = """# HTTP API

{description} The document itself is [openapi.json](../../openapi.json), also served at `/openapi.json`;
[Registry and serving](../../serving.md) explains formats, keys and limits, [Jobs](../../serving-jobs.md) what to do
with many cells. Routes below `/v1/models/{{model}}/` are those without it, for one of several models of a service.

"""
