"""Describe mistakes in configuration files: where each was written, its key path, and what was probably meant."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

KeyPath = tuple[str | int, ...]
_KEY = re.compile(r"([^\s:#\[\]{},\"'&*!|>%@]+)\s*:(?:\s|$)")
_OPTION = re.compile(r"'([^']*)'")
# YAML that begins on one line and fails on a later one: the first is where the mistake is.
_OPENED = ("while scanning a quoted scalar", "while parsing a flow mapping", "while parsing a flow sequence")
INPUT = "Input should be "


@dataclass(frozen=True)
class Mistake:
    """One mistake: the key path as it is in the file, and what pydantic reports of it, once per choice of a union."""

    path: KeyPath
    details: tuple[ErrorDetails, ...]

    @property
    def type(self) -> str:
        """The kind of mistake, as pydantic names it."""
        return self.details[0]["type"]


def find_mistakes(kind: type[BaseModel], data: Any, details: Sequence[ErrorDetails]) -> list[Mistake]:
    """Group what pydantic reports by the keys of the file; consequences of other mistakes are left out.

    pydantic names the choices of a union in its paths (``num_workers.int``), and reports each of them.
    """
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in details:
        grouped.setdefault(_path_in(kind, data, detail), []).append(detail)
    found = [Mistake(path, tuple(group)) for path, group in grouped.items()]
    inner = [mistake.path for mistake in found]
    # A misspelt required key is reported once, as unknown, and not as missing as well.
    meant = {nearest_key(kind, mistake.path) for mistake in found if mistake.type == "extra_forbidden"}
    return [
        mistake
        for mistake in found
        if not (mistake.type == "missing" and dotted(mistake.path) in meant)
        and not (_follows_from_others(mistake) and any(_is_below(path, mistake.path) for path in inner))
    ]


def _path_in(kind: type[BaseModel], data: Any, detail: ErrorDetails) -> KeyPath:
    """Return the path of a mistake without the names of a union's choices, which are no keys of the file."""
    path: list[str | int] = []
    for position, part in enumerate(detail["loc"]):
        is_last = position == len(detail["loc"]) - 1
        if isinstance(data, dict) and (part in data or (is_last and _is_key(kind, path, part, detail))):
            path.append(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            path.append(part)
            data = data[part] if part < len(data) else None
    return tuple(path)


def _is_key(kind: type[BaseModel], path: list[str | int], part: str | int, detail: ErrorDetails) -> bool:
    """Whether the last part of a location is a key that the file does not have: a required one, or a bad default."""
    model = model_at(kind, tuple(path))
    return detail["type"] == "missing" or (model is not None and part in model.model_fields)


def _follows_from_others(mistake: Mistake) -> bool:
    """Whether mistakes below it may be its cause: a bad item, or another choice of a union that fits better."""
    return mistake.type == "too_short" or any(len(detail["loc"]) > len(mistake.path) for detail in mistake.details)


def _is_below(path: KeyPath, other: KeyPath) -> bool:
    return len(path) > len(other) and path[: len(other)] == other


def explain(kind: type[BaseModel], mistake: Mistake, *, origin: str) -> str:
    """Describe a mistake as ``file:line: key.path: problem (did you mean …?)``."""
    path, detail = mistake.path, mistake.details[0]
    where = f"{origin}: {dotted(path) or 'top level'}"
    if mistake.type == "extra_forbidden":
        return f"{where}: unknown key{_suggest_key(kind, path)}"
    if mistake.type == "missing":
        return f"{where}: this key is required and has no default"
    messages = list(dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in mistake.details))
    message = " or ".join([messages[0], *(other.removeprefix(INPUT) for other in messages[1:])])
    got = detail["input"]
    if isinstance(got, dict) and mistake.type == "value_error":
        return f"{where}: {message}"
    return f"{where}: {message}, got {json.dumps(got, default=str)}{_suggest_choice(mistake)}"


def _suggest_choice(mistake: Mistake) -> str:
    """Suggest the choice nearest to the one that was written."""
    got = mistake.details[0]["input"]
    options = [
        option
        for detail in mistake.details
        if detail["type"] == "literal_error"
        for option in _OPTION.findall(str(detail.get("ctx", {}).get("expected", "")))
    ]
    near = difflib.get_close_matches(got, options, n=1, cutoff=0.5) if isinstance(got, str) else []
    return f" (did you mean {near[0]!r}?)" if near else ""


def _suggest_key(kind: type[BaseModel], path: KeyPath) -> str:
    """Suggest the key that was meant by the unknown key ``path``, or else list the valid keys."""
    near, scope = nearest_key(kind, path), model_at(kind, path[:-1])
    if near is not None:
        return f" (did you mean {near}?)"
    return f" (valid here: {', '.join(sorted(scope.model_fields))})" if scope is not None else ""


def nearest_key(kind: type[BaseModel], path: KeyPath) -> str | None:
    """Find the valid key nearest to the last part of ``path``: a similar one here, or the same one elsewhere."""
    scope = model_at(kind, path[:-1])
    if scope is None:
        return None
    unknown = str(path[-1])
    elsewhere = [key for key in all_keys(kind) if key.rpartition(".")[2] == unknown]
    if elsewhere:
        return elsewhere[0]
    near = difflib.get_close_matches(unknown, list(scope.model_fields), n=1, cutoff=0.5)
    return dotted((*path[:-1], near[0])) if near else None


def model_at(kind: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """Return the model class that validates the mapping at ``path``."""
    model: type[BaseModel] | None = kind
    for part in path:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        model = submodel(model.model_fields[part].annotation)
    return model


def submodel(annotation: Any) -> type[BaseModel] | None:
    """Return the first model class in an annotation such as ``Model``, ``Model | None`` or ``tuple[Model, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        found = submodel(argument)
        if found is not None:
            return found
    return None


def all_keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every key path of a configuration class, depth first."""
    keys: list[str] = []
    for name, info in kind.model_fields.items():
        keys.append(prefix + name)
        inner = submodel(info.annotation)
        if inner is not None:
            keys.extend(all_keys(inner, f"{prefix}{name}."))
    return keys


def dotted(path: KeyPath) -> str:
    """Format ``("train", "lr")`` as ``train.lr``."""
    return ".".join(str(part) for part in path)


def explain_yaml(file: str, text: str, error: Exception) -> str:
    """Describe text that is not YAML as ``file:line: key: not valid YAML: problem``."""
    mark = getattr(error, "problem_mark", None)
    if getattr(error, "context", None) in _OPENED:
        mark = getattr(error, "context_mark", None) or mark
    line = mark.line + 1 if mark is not None else 1
    key = key_on_line(text, line)
    problem = getattr(error, "problem", None) or str(error)
    return f"{file}:{line}: {f'{key}: ' if key else ''}not valid YAML: {problem}"


def key_on_line(text: str, line: int) -> str:
    """Return the key path on a line of a file that may not be YAML, by indentation; else that of the key above it."""
    stack: list[tuple[float, str | int]] = []
    for number, content in enumerate(text.splitlines(), 1):
        if number > line:
            break
        rest = content.lstrip()
        column: float = len(content) - len(rest)
        while rest.startswith("- "):  # half a column: a list may begin below its key, or further right
            last = _pop(stack, column + 0.5)
            stack.append((column + 0.5, last + 1 if isinstance(last, int) else 0))
            rest, column = rest[2:].lstrip(), column + 2 + len(rest[2:]) - len(rest[2:].lstrip())
        if (match := _KEY.match(rest)) is not None:
            _pop(stack, column)
            stack.append((column, match[1]))
    return dotted(tuple(part for _, part in stack))


def _pop(stack: list[tuple[float, str | int]], column: float) -> str | int | None:
    """Remove what does not enclose ``column``; return what stood exactly there."""
    there: str | int | None = None
    while stack and stack[-1][0] >= column:
        indent, part = stack.pop()
        there = part if indent == column else None
    return there
