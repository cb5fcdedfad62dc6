"""What a file means: where each key was given, how files differ, and a JSON Schema that editors can check by."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cytoray.config import ConfigError
from cytoray.stages.config import load_stage_config, stage_configs
from cytoray.stages.settings import diff_configs, known_kinds, schema_of, trace_settings

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("configs/*/*.yaml"), *ROOT.glob("serve/*.yaml")])
INGEST = """\
kind: ingest
store: /data
corpus: blood
sources:
- uri: /data/z.h5ad
  matrix: X
- {uri: /data/a.h5ad, rows: train}
tokenizer: tokens.yaml
"""


def written_keys(node: yaml.Node, file: str, prefix: str = "") -> dict[str, str]:
    """By PyYAML's graph alone: the line of each key that has a single value."""
    found: dict[str, str] = {}
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode):
            found |= written_keys(value, file, f"{prefix}{key.value}.")
        elif isinstance(value, yaml.ScalarNode) and not value.value.endswith(".yaml"):
            found[prefix + key.value] = f"{file}:{key.start_mark.line + 1}"
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_key_of_our_files_has_its_line_and_others_are_defaults(file: Path):
    told = {each.key: each.origin for each in trace_settings(file)}
    there = written_keys(yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), str(file))
    there = {key.replace("data.", "data.0.") if "data.0.uri" in told else key: line for key, line in there.items()}
    moved = {"initial_run": "initial"}  # one key is written as another
    assert {key: told.get(key) for key in there if key not in moved} == {
        k: v for k, v in there.items() if k not in moved
    }
    lines = {f"{file}:{number}" for number in range(1, len(file.read_text().splitlines()) + 1)}
    others = {origin for origin in told.values() if origin not in lines and origin != "default"}
    assert all(".yaml:" in origin for origin in others)  # of an included file


def test_sorted_lists_included_files_and_overrides_keep_their_origins(tmp_path: Path):
    (tmp_path / "tokens.yaml").write_text("# tokens\nmax_length: 99\n")
    file = tmp_path / "job.yaml"
    file.write_text(INGEST)
    told = {
        each.key: (each.value, each.origin) for each in trace_settings(file, overrides=["seed=7", "tokenizer.n_bins=9"])
    }
    assert told["sources.0.uri"] == ("/data/a.h5ad", f"{file}:7")
    assert told["sources.1.uri"] == ("/data/z.h5ad", f"{file}:5")
    assert told["sources.1.matrix"] == ("X", f"{file}:6")
    assert told["sources.0.matrix"] == ("auto", "default")
    assert told["tokenizer.max_length"] == (99, f"{tmp_path}/tokens.yaml:2")
    assert told["tokenizer.n_bins"] == (9, "--set tokenizer.n_bins")
    assert told["seed"] == (7, "--set seed")
    assert told["append"] == (False, "default")
    assert list(told) == [each.key for each in trace_settings(file)]


def test_a_difference_is_one_of_meaning(tmp_path: Path):
    (tmp_path / "tokens.yaml").write_text("max_length: 1200\n")
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(INGEST)
    reordered = "# the same\nseed: 0\nsources: [{uri: /data/a.h5ad, rows: train}, {matrix: X, uri: /data/z.h5ad}]\n"
    two.write_text(f"{reordered}kind: ingest\ncorpus: blood\nstore: /elsewhere\n")
    found = diff_configs(load_stage_config(one), load_stage_config(two))
    assert [(each.key, each.first, each.second, each.matters) for each in found.differences] == [
        ("store", "/data", "/elsewhere", False)
    ]
    assert found.same_results
    two.write_text(two.read_text() + "checks: {min_genes: 5}\n")
    found = diff_configs(load_stage_config(one), load_stage_config(two))
    assert [each.key for each in found.differences if each.matters] == ["checks.min_genes"]
    assert not found.same_results


def as_json(file: Path) -> Any:
    """A file as an editor sees it: numbers by YAML 1.2, in which 1e-4 is one."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: numbers(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [numbers(inner) for inner in value]
        return float(value) if isinstance(value, str) and re.fullmatch(r"[0-9.]+e[-+]?[0-9]+", value) else value

    return numbers(data)


@pytest.fixture(scope="module")
def whole() -> jsonschema.Draft202012Validator:
    schema = schema_of()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_schema_accepts_our_files_and_no_misspelt_key(file: Path, whole: jsonschema.Draft202012Validator):
    data = as_json(file)
    kind = "serve-deploy" if file.parent.name == "serve" and file.parent.parent == ROOT else data.get("kind", "model")
    one = jsonschema.Draft202012Validator(schema_of(kind))
    for validator in [one, *([whole] if "kind" in data else [])]:
        assert [error.message for error in validator.iter_errors(data)] == []
        assert list(validator.iter_errors(data | {"sed": 1}))
        if "store" in data:
            assert list(validator.iter_errors(data | {"store": 3}))


def test_the_schema_describes_every_key_and_requires_the_kind(whole: jsonschema.Draft202012Validator):
    for kind, model in known_kinds().items():
        schema = schema_of(kind)
        top = schema["$defs"][schema["$ref"].rpartition("/")[2]]
        assert top["properties"].keys() == model.model_fields.keys()
        assert all(each.get("description") for each in top["properties"].values()), kind
        assert ("kind" in top.get("required", ())) == (kind in stage_configs())
    assert list(whole.iter_errors({"kind": "pretrian"}))
    assert list(whole.iter_errors({}))
    with pytest.raises(ConfigError, match="Known are ingest, "):
        schema_of("pretrian")
