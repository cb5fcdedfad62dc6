"""What a configuration file means: the origin of each key, differences between files, and JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from cytoray.config import Config, read_tree
from cytoray.errors import ConfigError
from cytoray.mistakes import KeyPath, dotted
from cytoray.serving.deploy_file import DeployFile
from cytoray.stages.config import ModelShapeConfig, load_stage_config, stage_configs

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFAULT = "default"
#: A mapping may be another file instead, which its schema must allow.
INCLUDED = {"type": "string", "pattern": r"\.ya?ml$", "description": "Path of another YAML file with this mapping."}


@dataclass(frozen=True)
class Setting:
    """One key of a resolved configuration: its value, and where that was given.

    ``origin`` is ``file:line``, ``--set KEY`` or ``default``; no key of a stage is taken from the environment.
    """

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Difference:
    """A key whose values differ; ``matters`` is False for locations, which do not change results."""

    key: str
    first: Any
    second: Any
    matters: bool


@dataclass(frozen=True)
class ConfigDiff:
    """The differences of two files, defaults applied."""

    kinds: tuple[str, str]
    fingerprints: tuple[str, str]
    differences: tuple[Difference, ...]

    @property
    def same_results(self) -> bool:
        """Whether both configure the same thing, apart from locations."""
        return self.kinds[0] == self.kinds[1] and self.fingerprints[0] == self.fingerprints[1]


def known_kinds() -> dict[str, type[Config]]:
    """Return the class of every kind of file, those without a ``kind`` in them included."""
    return {**stage_configs(), "model": ModelShapeConfig, "serve-deploy": DeployFile}


def kind_of(config: Config) -> str:
    """Return the kind of a configuration."""
    return str(getattr(config, "kind", type(config).__name__))


def trace_settings(path: str | Path, *, overrides: Sequence[str] = ()) -> list[Setting]:
    """Return every key of a file's configuration with its origin, in the order of the fields; ConfigError as usual."""
    config, tree = load_stage_config(path, overrides=overrides), read_tree(path, overrides=overrides)
    return [
        Setting(dotted(key), value, DEFAULT if written is None else tree.origin(written))
        for key, value, written in _leaves(config.model_dump(mode="json"), tree.data, (), ())
    ]


def _leaves(value: Any, raw: Any, key: KeyPath, written: KeyPath) -> Iterator[tuple[KeyPath, Any, KeyPath | None]]:
    """Yield each leaf with its key path, and its path in the file (None if it is not there)."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            there = isinstance(raw, dict) and name in raw
            yield from _leaves(inner, raw[name] if there else None, (*key, name), (*written, name) if there else ())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for position, item in enumerate(value):
            place = _place_of(item, raw, position)
            found = raw[place] if place is not None else raw if isinstance(raw, dict) else None
            path = (*written, place) if place is not None else written if isinstance(raw, dict) else ()
            yield from _leaves(item, found, (*key, position), path)
    else:
        yield key, value, written or None


def _place_of(item: Any, raw: Any, position: int) -> int | None:
    """Return where an item stands in the list of the file: some lists are sorted when they are read."""
    if not isinstance(raw, list):
        return None
    candidates = [position, *(other for other in range(len(raw)) if other != position)]
    return next((place for place in candidates if place < len(raw) and _fits(item, raw[place])), None)


def _fits(value: Any, raw: Any) -> bool:
    """Whether a value may have been read from ``raw``: paths are made absolute, missing keys have defaults."""
    if isinstance(value, dict) and isinstance(raw, dict):
        return all(name in value and _fits(value[name], raw[name]) for name in raw)
    if isinstance(value, str) and isinstance(raw, str):
        return value.endswith(raw.removeprefix("./").removeprefix("~").rpartition("package://")[2].rpartition("../")[2])
    return isinstance(value, list) == isinstance(raw, list)


def diff_configs(first: Config, second: Config) -> ConfigDiff:
    """Compare two configurations key by key; a key that only one of them has is None in the other."""
    one, two = (dict(flatten(config.model_dump(mode="json"))) for config in (first, second))
    free = first.places | second.places
    found = [
        Difference(key, one.get(key), two.get(key), matters=key.partition(".")[0] not in free)
        for key in dict.fromkeys([*one, *two])
        if one.get(key) != two.get(key)
    ]
    fingerprints = (first.fingerprint(), second.fingerprint())
    return ConfigDiff((kind_of(first), kind_of(second)), fingerprints, tuple(found))


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings by their key path; lists of mappings by position, other lists whole."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        for position, item in enumerate(value):
            yield from flatten(item, f"{prefix}.{position}")
    else:
        yield prefix, value


def describe_diff(difference: ConfigDiff) -> Iterator[str]:
    """Describe the differences of two configurations in lines for people."""
    if difference.kinds[0] != difference.kinds[1]:
        yield f"kind  {difference.kinds[0]} -> {difference.kinds[1]}"
    width = max((len(each.key) for each in difference.differences), default=0)
    for each in difference.differences:
        note = "" if each.matters else "  (a location: results are the same)"
        yield f"{each.key:<{width}}  {_shown(each.first)} -> {_shown(each.second)}{note}"
    if difference.same_results:
        yield "the same results: " + ("only locations differ" if difference.differences else "nothing differs")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def schema_of(kind: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema of a kind of file, or of all that have a ``kind``, for completion and checks in editors.

    Raises ConfigError for an unknown kind.
    """
    kinds = known_kinds()
    if kind is not None and kind not in kinds:
        raise ConfigError(f"Unknown kind {kind!r}.", remedy=f"Known are {', '.join(kinds)}.", kind=kind)
    chosen = {kind: kinds[kind]} if kind is not None else dict(stage_configs())
    references, shared = models_json_schema([(model, "validation") for model in chosen.values()])
    originals = shared.get("$defs", {})
    definitions = {name: _open_to_files(each, originals) for name, each in originals.items()}
    found = {name: references[(model, "validation")]["$ref"] for name, model in chosen.items()}
    for name, reference in found.items():
        if name in stage_configs():
            definitions[reference.rpartition("/")[2]].setdefault("required", []).append("kind")
    top: dict[str, Any] = {"$schema": DIALECT, "title": f"cytoray: {kind or 'a stage'}", "$defs": definitions}
    if kind is not None:
        return top | {"$ref": found[kind]}
    choices = [
        {"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]}, "then": {"$ref": reference}}
        for name, reference in found.items()
    ]
    kinds_there = {"enum": list(found), "description": "Which stage this file configures."}
    return top | {"type": "object", "required": ["kind"], "properties": {"kind": kinds_there}, "allOf": choices}


def _open_to_files(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Allow the path of a YAML file wherever a model stands as the value of a key."""
    properties = {name: _or_file(each, definitions) for name, each in schema.get("properties", {}).items()}
    return {**schema, "properties": properties} if properties else schema


def _or_file(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        kept = {name: value for name, value in schema.items() if name != "$ref"}
        # pydantic leaves out a description that is also that of the model
        about = {"description": definitions[schema["$ref"].rpartition("/")[2]].get("description", "")}
        return {**about, **kept, "anyOf": [{"$ref": schema["$ref"]}, INCLUDED]}
    if schema.get("type") == "object":
        return {**{key: schema[key] for key in ("description",) if key in schema}, "anyOf": [schema, INCLUDED]}
    if any("$ref" in choice for choice in schema.get("anyOf", ())):
        return {**schema, "anyOf": [*schema["anyOf"], INCLUDED]}
    return schema
