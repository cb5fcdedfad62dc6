"""The configuration files of the stages, and `cytoray config`, which answers before anything heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
import yaml

from cytoray.errors import ConfigError
from cytoray.stages.config import load_stage_config, stage_configs

ROOT = Path(__file__).parents[2]
CYTORAY = Path(sys.executable).with_name("cytoray")

SHIPPED = [
    path
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if "kind" in (yaml.safe_load(path.read_text(encoding="utf-8")) or {})
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_file_is_good(path: Path):
    config = load_stage_config(path)
    assert type(config) is stage_configs()[yaml.safe_load(path.read_text(encoding="utf-8"))["kind"]]


def test_every_stage_has_a_shipped_file():
    assert {yaml.safe_load(path.read_text(encoding="utf-8"))["kind"] for path in SHIPPED} == set(stage_configs())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# none\nstore: x\n", "job.yaml:1: kind: expected one of ingest, "),
        ("store: x\nkind: ingset\n", "job.yaml:2: kind: expected one of "),
        ("store: x\nkind: [ingest]\n", "job.yaml:2: kind: expected one of "),
        ("store: x\nkind: {a: b}\n", "job.yaml:2: kind: expected one of "),
        ("", "job.yaml:1: kind: expected one of "),
    ],
)
def test_a_file_without_a_known_kind_is_refused(write, text: str, told: str):
    with pytest.raises(ConfigError) as caught:
        load_stage_config(write(text))
    assert caught.value.problem.startswith(told)


def test_every_field_of_every_stage_is_documented():
    def undocumented(kind: type[pydantic.BaseModel]) -> list[str]:
        return [f"{kind.__name__}.{name}" for name, info in kind.model_fields.items() if not info.description]

    assert [name for kind in stage_configs().values() for name in undocumented(kind)] == []


PLANTED = """\
kind: ingest
store: /data
corpus: blood
sources:
  - {uri: /data/a.h5ad}
checks:
  min_gene: 3
tokenizer:
  n_bins: many
seed: -1
"""


def run_cytoray(*arguments: str) -> tuple[int, str, str, set[str]]:
    """Run the installed command; its exit code, stdout, stderr and the modules it imported."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    command = [str(CYTORAY), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    errors, modules = [], set()
    for line in finished.stderr.splitlines():
        if line.startswith("import time:"):
            modules.add(line.rpartition("|")[2].strip())
        else:
            errors.append(line)
    return finished.returncode, finished.stdout, "\n".join(errors), modules


def test_config_check_names_every_mistake_before_anything_heavy_is_imported(write):
    good = str(ROOT / "configs" / "corpus" / "quickstart.yaml")
    status, out, errors, modules = run_cytoray("config", "check", write(PLANTED), good, "absent.yaml")
    assert status == 2
    for told in (
        "job.yaml:7: checks.min_gene: unknown key (did you mean checks.min_genes?)",
        'job.yaml:9: tokenizer.n_bins: Input should be a valid integer, got "many"',
        "job.yaml:10: seed: Input should be greater than or equal to 0, got -1",
        "absent.yaml: cannot read this configuration",
    ):
        assert told in errors
    assert "Traceback" not in errors
    assert f"{good}: good (ingest, " in out
    assert "cytoray.stages.config" in modules
    # Together these take half a minute to import; the promise is an answer within two seconds.
    heavy = {"ray", "torch", "deepspeed", "mlflow", "anndata", "scanpy", "sklearn", "matplotlib", "pyarrow"}
    assert modules & heavy == set()


def test_config_show_resolves_defaults_and_overrides(write):
    good = str(ROOT / "configs" / "corpus" / "quickstart.yaml")
    status, out, _, _ = run_cytoray("config", "show", good, "--set", "cells_per_shard=999")
    assert status == 0
    shown = yaml.safe_load(out)
    assert shown["cells_per_shard"] == 999
    assert shown == load_stage_config(good, overrides=["cells_per_shard=999"]).model_dump(mode="json")
    status, out, errors, _ = run_cytoray("config", "show", good, "--set", "cell_per_shard=999")
    assert (status, out) == (2, "")
    assert "--set cell_per_shard: cell_per_shard: unknown key (did you mean cells_per_shard?)" in errors


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["workers.num_workers=[2,1]"], "num_workers must be a number above 0 or"),
        (["workers.num_workers=0"], "num_workers must be a number above 0 or"),
        (["workers.precision=bf16", "workers.zero_stage=0"], "bf16 needs zero_stage"),
        (["train.ema_decay=0.9", "workers.zero_stage=3"], "train.ema_decay needs whole weights"),
        (["workers.num_workers=[1,64]", "train.cells_per_step=32"], "leaves some of the 64 workers without a cell"),
        (["validation.max_cell=5"], r"did you mean validation\.max_cells"),
    ],
)
def test_what_cannot_be_trained_is_refused(overrides: list[str], told: str):
    with pytest.raises(ConfigError, match=told):
        load_stage_config(ROOT / "configs/pretrain/base-cpu.yaml", overrides=overrides)
