"""Configuration: a frozen strict base class, YAML plus ``--set a.b=c``, all mistakes reported at once."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from cytoray.errors import ConfigError
from cytoray.mistakes import KeyPath, dotted, explain, explain_yaml, find_mistakes


def _absolute(uri: str) -> str:
    """Make local paths absolute, since the working folder of a Ray worker differs from that of the user.

    ``package://scanpy.datasets/file`` is a file that an installed package ships; the package is not imported.
    ValueError for what is neither a path nor a URI of a known kind.
    """
    check_location(uri)
    if uri.startswith("package://"):
        package, _, name = uri.removeprefix("package://").partition("/")
        top, *inner = package.split(".")
        spec = importlib.util.find_spec(top) if top else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"the package {package!r} is not installed")
        return str(Path(spec.submodule_search_locations[0], *inner, name))
    if "://" in uri:
        return uri
    return str(Path(uri).expanduser().absolute()) + ("/" if uri.endswith("/") else "")


def check_location(uri: str, *, schemes: tuple[str, ...] = ("s3", "file", "package", "memory")) -> None:
    """Raise ValueError for an empty location, ``s3:/bucket``, an S3 URI without a bucket, or an unknown scheme.

    ``memory://`` names cells that this process holds (``scGPT`` on an AnnData, an uploaded h5ad); it has no files.
    """
    if not uri.strip():
        raise ValueError("it is empty; write a path or s3://bucket/prefix")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        if (match := re.match(r"(?i)(s3|file|package)(?::/|:?//)", uri)) is not None:
            raise ValueError(f"it looks like a URI, which begins with {match[1].lower()}://")
        return
    if schemes and scheme not in schemes:
        raise ValueError(f"unknown kind of store {scheme!r}; write a path or s3://bucket/prefix")
    if scheme == "s3" and not rest.strip("/"):
        raise ValueError("it has no bucket; write s3://bucket/prefix")


Location = Annotated[str, AfterValidator(_absolute)]  # an s3:// URI or a local path
ConfigType = TypeVar("ConfigType", bound="Config")
MAX_DEPTH = 50  # of nested mappings; exceeded only by a file that includes itself


class Config(BaseModel):
    """Base of every configuration: immutable; unknown keys and implicit conversions are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, ser_json_inf_nan="constants"
    )

    #: Fields with locations, which do not affect results and are not part of the fingerprint.
    places: ClassVar[frozenset[str]] = frozenset()

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the canonical JSON of all values, defaults included, without ``places``."""
        values = self.model_dump(mode="json", exclude=set(self.places))
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Loader of safe YAML that also reads ``1e-4`` as a float (a string in YAML 1.1)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclass
class _Tree:
    """Plain data together with where each key was written: ``file:line`` or ``--set KEY``."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: KeyPath) -> str:
        """Return where ``path``, or the nearest mapping around it, was written."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path, "")


def load_config(kind: type[ConfigType], path: str | Path, *, overrides: Sequence[str] = ()) -> ConfigType:
    """Read ``path`` as YAML, apply ``a.b=c`` overrides and validate as ``kind``.

    A mapping may be written as the path of another YAML file, relative to the one that names it.
    Raises ConfigError that lists every mistake with file, line, key path and the nearest valid key.
    """
    tree = read_tree(path, overrides=overrides)
    return validate_tree(kind, tree, source=str(path))


def build_config(kind: type[ConfigType], *, overrides: Sequence[str]) -> ConfigType:
    """Build a configuration from defaults and ``a.b=c`` overrides alone; ConfigError as in ``load_config``."""
    tree = _Tree()
    for override in overrides:
        _apply_override(tree, override)
    return validate_tree(kind, tree, source="--set")


def build_from(
    kind: type[ConfigType], values: Mapping[str, Any], *, source: str, origins: Mapping[str, str] | None = None
) -> ConfigType:
    """Build a configuration from values by key; ConfigError as in ``load_config``.

    ``origins`` names what each key was given by, for messages; ``source`` if it names none.
    """
    tree = _Tree(dict(values), {(): source} | {(key,): where for key, where in (origins or {}).items()})
    return validate_tree(kind, tree, source=source)


def read_tree(path: str | Path, *, overrides: Sequence[str] = ()) -> _Tree:
    """Read YAML (with its includes) and overrides into plain data with the line of each key."""
    tree = _Tree()
    node = _compose(Path(path))
    tree.origins[()] = f"{path}:1"
    value = _convert(node, (), Path(path), tree) if node is not None else {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:1: the top level must be a mapping of keys.", remedy="Write key: value lines.")
    tree.data = value
    for override in overrides:
        _apply_override(tree, override)
    return tree


def subtree(tree: _Tree, path: KeyPath, *, overrides: Sequence[str] = ()) -> _Tree:
    """Return the mapping at a key path with the lines of its keys, after ``a.b=c`` overrides of its own keys."""
    data: Any = tree.data
    for part in path:
        data = data[part]
    assert isinstance(data, dict), "only mappings have keys"
    origins = {known[len(path) :]: where for known, where in tree.origins.items() if known[: len(path)] == path}
    found = _Tree(copy.deepcopy(data), origins)
    for override in overrides:
        _apply_override(found, override)
    return found


def _compose(path: Path) -> yaml.Node | None:
    """Parse a YAML file into its node graph."""
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.compose(text, Loader=_Loader)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read this configuration ({error.strerror}).", remedy="Check the path.", path=str(path)
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = f"{explain_yaml(str(path), text, error)}."
        raise ConfigError(problem, remedy="Fix this line.", path=str(path)) from error


def _convert(node: yaml.Node, path: KeyPath, file: Path, tree: _Tree) -> Any:
    """Convert a YAML node to plain data, recording the line of every key."""
    if len(path) > MAX_DEPTH:
        where = f"{file}:{node.start_mark.line + 1}"
        raise ConfigError(
            f"{where}: nested more than {MAX_DEPTH} levels deep.", remedy="Look for a file that includes itself."
        )
    tree.origins.setdefault(path, f"{file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, child = str(key_node.value), (*path, str(key_node.value))
            if key in result:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"{file}:{line}: {dotted(child)}: duplicate key.", remedy="Keep one of them.")
            tree.origins[child] = f"{file}:{key_node.start_mark.line + 1}"
            result[key] = _convert(value_node, child, file, tree)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_convert(child, (*path, position), file, tree) for position, child in enumerate(node.value)]
    value = _scalar(node, path, file)
    if isinstance(value, str) and path and value.endswith((".yaml", ".yml")):
        included = file.parent / value
        inner = _compose(included)
        return _convert(inner, path, included, tree) if inner is not None else {}
    return value


def _scalar(node: yaml.Node, path: KeyPath, file: Path) -> Any:
    """Construct one YAML scalar by the safe rules."""
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError) as error:  # an unknown !tag; a date such as 2020-13-45
        why = getattr(error, "problem", None) or str(error)
        where = f"{file}:{node.start_mark.line + 1}: {dotted(path)}"
        raise ConfigError(f"{where}: {why}.", remedy="Quote the value.") from error
    finally:
        loader.dispose()


def _apply_override(tree: _Tree, override: str) -> None:
    """Set one ``a.b=value`` (value read as YAML) in the tree."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected KEY=VALUE.", remedy="For example --set train.num_steps=20.")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML.", remedy="Quote it.") from error
    *parents, last = key.split(".")
    place = tree.data
    for depth, parent in enumerate(parents):
        tree.origins.setdefault(tuple(parents[: depth + 1]), f"--set {key}")
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(
                f"--set {override}: {where} is a single value, not a mapping.", remedy=f"Set {where} itself."
            )
        place = inner
    place[last] = value
    path = (*parents, last)
    tree.origins = {known: where for known, where in tree.origins.items() if known[: len(path)] != path}
    tree.origins[path] = f"--set {key}"


def validate_tree(kind: type[ConfigType], tree: _Tree, *, source: str) -> ConfigType:
    """Validate plain data as ``kind``; raises one ConfigError with all mistakes."""
    try:
        # JSON mode is strict about types but accepts a list for a tuple, as YAML has no tuples.
        return kind.model_validate_json(json.dumps(tree.data, default=str), strict=True)
    except ValidationError as error:
        found = find_mistakes(kind, tree.data, error.errors())
        lines = [explain(kind, mistake, origin=tree.origin(mistake.path)) for mistake in found]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(
            f"{source}: {count} in this configuration:\n  " + "\n  ".join(lines),
            remedy="\nFix these lines; `cytoray config check FILE` checks a file without running anything.",
            mistakes=lines,
        ) from error
