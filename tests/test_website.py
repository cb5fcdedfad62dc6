"""The site's reference has everything that the code has; its navigation takes pages that nobody listed."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import ROOT

from cytoray.serving.deploy_file import DeployFile
from cytoray.stages.config import load_stage_config

FOLDER = ROOT / "scripts" / "website"


@pytest.fixture(scope="module")
def website() -> Iterator[Any]:
    """Imports modules of scripts/website by name."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def reference(website: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated pages."""
    folder = tmp_path_factory.mktemp("site") / "reference"
    website("reference").main(folder)
    return folder


def key_paths(tree: Any, path: str = "") -> Iterator[str]:
    """The paths of all keys of a resolved configuration, as the reference writes them."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            mark = "[]" if isinstance(value, list) and value and isinstance(value[0], dict) else ""
            yield f"{path}{name}{mark}"
            yield from key_paths(value, f"{path}{name}{mark}.")
    if isinstance(tree, list):
        for value in tree[:1]:
            yield from key_paths(value, path)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_file_is_in_the_reference(file: Path, reference: Path):
    config = load_stage_config(file)
    kind = "deploy" if isinstance(config, DeployFile) else config.kind
    text = (reference / "configuration" / f"{kind}.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| \[?`([^`]+)`", text, re.MULTILINE))
    keys = {path.replace("[]", "") for path in key_paths(config.model_dump(mode="json"))}
    keys = {path for path in keys if not path.startswith("stages.config.")}  # of a pipeline: a stage's own
    assert keys <= {path.replace("[]", "").replace("{}", "") for path in listed}


def test_defaults_and_ranges_are_in_the_reference(reference: Path):
    text = (reference / "configuration" / "pretrain.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| `optimizer.gradient_clipping`")]
    assert row.split(" | ")[1:3] == ["number", "`1.0`"]
    assert "> 0" in row
    (row,) = [line for line in text.splitlines() if line.startswith("| `workers.zero_stage`")]
    assert row.split(" | ")[1] == "`0`, `1`, `2`, `3`"


def test_every_route_is_in_the_reference(reference: Path):
    text = "".join(path.read_text(encoding="utf-8") for path in (reference / "http").glob("*.md"))
    document = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    routes = {f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations}
    assert routes <= set(re.findall(r"^## `([A-Z]+ [^`]+)`", text, re.MULTILINE))
    assert "list of [CellPayload](types.md#cellpayload)" in text


def test_python_names_are_those_that_can_be_imported(reference: Path):
    text = "".join(path.read_text(encoding="utf-8") for path in (reference / "python").glob("*.md"))
    names = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert "cytoray.stages.annotate.annotate" in names
    for name in names:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


def test_patterns_take_what_is_named_nowhere_else(website: Any):
    pages = ["index.md", "runbooks/S10.md", "runbooks/S2.md", "runbooks/index.md", "new.md", "kube.md", "kubectl.md"]
    nav = [
        {"Start": ["index.md"]},
        {"Operations": ["kubectl.md", "kube*.md", {"Runbooks": ["runbooks/index*.md", "runbooks/*.md"]}]},
        {"Absent": ["absent-*.md"]},
        {"More": ["*.md"]},
    ]
    runbooks = ["runbooks/index.md", "runbooks/S2.md", "runbooks/S10.md"]
    assert website("navigation").expand(nav, pages) == [
        {"Start": ["index.md"]},
        {"Operations": ["kubectl.md", "kube.md", {"Runbooks": runbooks}]},
        {"More": ["new.md"]},
    ]
