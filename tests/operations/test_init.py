"""A new project's files are good, as they are and with every key uncommented; nothing of the user's is overwritten."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cytoray.cli.defaults import Defaults
from cytoray.cli.main import main
from cytoray.config import load_config
from cytoray.mistakes import all_keys
from cytoray.operations.starting.templates import render
from cytoray.stages.config import load_stage_config, stage_configs

STAGES = ["ingest", "pretrain", "finetune", "evaluate", "promote", "serve", "pipeline"]
COMMENTED = re.compile(r"^(\s*)# ( *(?:- )?[a-z_]+:.*)$")


@pytest.fixture
def cytoray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    for name in ("CYTORAY_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["cytoray", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert (ended.value.code or 0) == code, captured
        return captured.out, captured.err

    return run


def uncommented(text: str) -> str:
    """The file with every key that was commented out."""
    lines = text.splitlines()
    return "\n".join(match[1] + match[2] if (match := COMMENTED.match(line)) else line for line in lines)


def test_a_project_is_complete_and_good(cytoray: Any, tmp_path: Path):
    out, _ = cytoray(
        "init", "blood", "--store", "s3://bucket/cells", "--data", "s3://bucket/raw/", "--label-key", "type",
        "--uri", "https://mlflow.example", "--json",
    )  # fmt: skip
    folder = tmp_path / "blood"
    files = {Path(file).name for file in json.loads(out)["files"]}
    assert files == {"cytoray.yaml", ".gitignore", "README.md", *(f"{stage}.yaml" for stage in STAGES)}
    assert files == {path.name for path in folder.iterdir()}
    cytoray("config", "check", *(str(folder / f"{stage}.yaml") for stage in STAGES))
    ingest: Any = load_stage_config(folder / "ingest.yaml")
    finetune: Any = load_stage_config(folder / "finetune.yaml")
    assert ingest.sources[0].uri == "s3://bucket/raw/"
    assert (finetune.label_key, finetune.store, finetune.tracking.uri) == (
        "type",
        "s3://bucket/cells",
        "https://mlflow.example",
    )
    assert finetune.initial == "run:blood-pretrain"
    assert load_config(Defaults, folder / "cytoray.yaml").store == "s3://bucket/cells"
    readme = (folder / "README.md").read_text()
    check = next(line.split() for line in readme.splitlines() if line.startswith("cytoray config check"))
    assert sorted(check[3:]) == sorted(f"{stage}.yaml" for stage in STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_is_there_and_good_when_it_is_uncommented(stage: str, cytoray: Any, tmp_path: Path):
    cytoray("init", "blood")
    file = tmp_path / "blood" / f"{stage}.yaml"
    plain: Any = load_stage_config(file)
    text = uncommented(file.read_text())
    file.write_text(text)
    whole: Any = load_stage_config(file)
    assert whole == plain  # the defaults that are shown are the defaults
    there = yaml.safe_load(text)
    assert there.keys() == {name for name in stage_configs()[stage].model_fields if name not in ("initial_run",)} | (
        {"initial_run"} if "initial_run" in there else set()
    )
    assert all("#" in line for line in file.read_text().splitlines()[2:] if ":" in line)


def test_a_template_has_every_required_key_and_no_value_of_its_own():
    kind = stage_configs()["ingest"]
    text = render(
        kind, {"kind": "ingest", "store": "/a: b", "corpus": "x", "sources": [{"uri": "/y # z"}]}, about="About."
    )
    values = yaml.safe_load(text)
    assert values == {"kind": "ingest", "store": "/a: b", "corpus": "x", "sources": [{"uri": "/y # z"}]}
    assert {
        key.rpartition(".")[2] for key in all_keys(kind) if "modalities." not in key and "guides." not in key
    } <= set(re.findall(r"[a-z_]+(?=:)", text))


def test_a_folder_with_anything_in_it_is_refused(cytoray: Any, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    _, err = cytoray("init", "mine", code=2)
    assert "is not empty" in err
    _, err = cytoray("init", "mine/notes", code=2)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes"]
    _, err = cytoray("init", "new", "--store", "s3:/bucket", code=2)
    assert "--store s3:/bucket: it looks like a URI" in err
    _, err = cytoray("init", "a name", code=2)
    assert "--name" in err
    assert not (tmp_path / "new").exists()


def test_nothing_is_asked_without_a_terminal(cytoray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with open("/dev/null", encoding="utf-8") as nothing:  # reading it would end the command
        monkeypatch.setattr("sys.stdin", nothing)
        cytoray("init", "here")
    assert "store: store" in (tmp_path / "here" / "cytoray.yaml").read_text()


def test_what_is_needed_is_in_the_package():
    """Templates are made of the classes: the package needs no file beside its code."""
    import cytoray

    folder = Path(cytoray.__file__).parent / "operations" / "starting"
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".py"}
