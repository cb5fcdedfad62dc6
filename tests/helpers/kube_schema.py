"""Problems of Kubernetes objects: KubeRay's CRDs and the API's own schemas, both made strict, with slash-joined paths.

    schemas = kuberay_schemas()          # skips the test, with a message, where the CRDs are not at hand
    assert schemas.problems(document) == []

KubeRay's CRDs are read from ``../shared/kuberay-crds`` or the folder that CYTORAY_KUBERAY_CRDS names. As on an API
server, defaults are applied first; unlike there, an unknown key is an error. CEL rules are not evaluated. The schemas
of the core kinds are those of the package kubernetes-validate.
"""

from __future__ import annotations

import difflib
import importlib.resources
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource

ROOT = Path(__file__).parents[2]
KUBERNETES = "1.32.0"  # the oldest version of Kubernetes that infra/ is written for
CRD_FOLDER = Path(os.environ.get("CYTORAY_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay-crds"))
KUEUE = ROOT / "tests" / "infra" / "kueue.yaml"
OBJECT = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
VERBATIM = frozenset({"enum", "default", "required", "example"})  # their values are data, not schemas
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(text: str) -> list[Any]:
    """Parse all documents of a text, without the empty ones."""
    return [document for document in yaml.load_all(text, Loader) if document is not None]


def make_strict(schema: Any) -> Any:
    """Return a CRD's schema as JSON Schema that rejects keys which it does not list."""
    if isinstance(schema, list):
        return [make_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        key: value if key in VERBATIM else make_strict(value) for key, value in schema.items() if key != "properties"
    }
    if isinstance(schema.get("properties"), dict):
        strict["properties"] = {name: make_strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
            strict["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") is True and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    return strict


def with_defaults(schema: Mapping[str, Any], value: Any) -> Any:
    """Return a value with the defaults of its schema filled in, as an API server does before it validates."""
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [with_defaults(schema["items"], each) for each in value]
    if not isinstance(value, dict):
        return value
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    filled = {name: each["default"] for name, each in properties.items() if "default" in each} | value
    schemas = {name: properties.get(name, others if isinstance(others, dict) else {}) for name in filled}
    return {name: with_defaults(schemas[name], each) for name, each in filled.items()}


def _messages(error: ValidationError) -> Iterator[str]:
    """Yield each problem that an error of jsonschema stands for, with its path."""
    path = "/".join(str(part) for part in error.absolute_path)
    if error.validator != "additionalProperties" or not isinstance(error.schema, Mapping):
        yield f"{path}: {error.message[:300]}"
        return
    known = error.schema.get("properties", {})
    for name in [name for name in error.instance if name not in known]:
        close = difflib.get_close_matches(str(name), known, n=1)
        yield f"{path}: unknown key {name!r}" + (f", did you mean {close[0]!r}?" if close else "")


@dataclass(frozen=True)
class KubeSchemas:
    """The schemas of custom kinds by (apiVersion, kind), and those of the core kinds."""

    custom: dict[tuple[str, str], dict[str, Any]]
    _validators: dict[tuple[str, str], Draft202012Validator] = field(default_factory=dict)

    def problems(self, document: Any) -> list[str]:
        """Return each problem of one object as ``path: message``; an unknown kind is a problem."""
        if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
            return ["kind: missing"]
        key = (str(document.get("apiVersion")), document["kind"])
        if key in self.custom:
            document = with_defaults(self.custom[key], document)
            validator = self._validators.setdefault(key, Draft202012Validator(make_strict(self.custom[key])))
        else:
            found = core_validator(*key)
            if found is None:
                return [f"apiVersion: unknown kind {key[1]!r} of apiVersion {key[0]!r}"]
            validator = found
        return [message for error in validator.iter_errors(document) for message in _messages(error)]


def read_crds(paths: list[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the schema of each served version of the CustomResourceDefinitions in files."""
    schemas = {}
    for path in paths:
        for crd in read_yaml(path.read_text(encoding="utf-8")):
            spec = crd["spec"]
            for version in (each for each in spec["versions"] if each["served"]):
                schema = version["schema"]["openAPIV3Schema"]
                schema["properties"] = OBJECT | schema["properties"]
                needed = ["apiVersion", "kind", "metadata", *(["spec"] if "spec" in schema["properties"] else [])]
                schema["required"] = [*schema.get("required", []), *needed]
                schemas[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return schemas


@cache
def _core_folder() -> Path:
    package = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed: make setup")
    files = importlib.resources.files(package) / "kubernetes-json-schema" / f"v{KUBERNETES}-local-strict"
    return Path(str(files))


@cache
def _core_registry() -> Registry[Any]:
    definitions = json.loads((_core_folder() / "_definitions.json").read_text(encoding="utf-8"))
    return Resource.from_contents(definitions) @ Registry()


@cache
def core_validator(api_version: str, kind: str) -> Draft202012Validator | None:
    """Return the validator of a kind of Kubernetes itself, None if it has no such kind in this version."""
    group, _, version = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.partition(".")[0], version) if part)
    path = _core_folder() / f"{name}.json"
    if not path.is_file():
        return None
    schema = json.loads(path.read_text(encoding="utf-8"))
    schema["required"] = ["apiVersion", "kind", "metadata"]
    return Draft202012Validator(schema, registry=_core_registry())


@cache
def kuberay_schemas() -> KubeSchemas:
    """Return the schemas of KubeRay, Kueue and Kubernetes; skips the test if KubeRay's CRDs are not there."""
    files = sorted(CRD_FOLDER.glob("ray.io_*.yaml"))
    if not files:
        pytest.skip(f"no CRDs of KubeRay in {CRD_FOLDER}: name their folder with CYTORAY_KUBERAY_CRDS")
    return KubeSchemas(read_crds([*files, *([KUEUE] if KUEUE.is_file() else [])]))
