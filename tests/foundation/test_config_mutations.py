"""200 mistakes planted in our own files: each is reported with its key path, line and what was probably meant."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from config_mutations import Mutation, mutations
from pydantic import BaseModel

from cytoray.errors import ConfigError
from cytoray.serving.deploy_file import DeployFile
from cytoray.stages.config import ModelShapeConfig, load_stage_config, stage_configs

ROOT = Path(__file__).parents[2]
NUMBER, SEED = 200, 17
MAX_S = 1.0  # of processor time: the machine may be busy


def files() -> dict[Path, type[BaseModel]]:
    """Every file of ours, with the class that validates it."""
    found: dict[Path, type[BaseModel]] = {}
    for file in [*ROOT.glob("configs/*/*.yaml"), *ROOT.glob("serve/*.yaml")]:
        kind = yaml.safe_load(file.read_text(encoding="utf-8")).get("kind")
        found[file] = stage_configs()[kind] if kind else DeployFile if file.parent.name == "serve" else ModelShapeConfig
    return found


def report(file: Path, mutation: Mutation, folder: Path) -> str:
    """Plant the mistake in a copy of the files; return what is wrong with the answer, or nothing."""
    target = folder / file.relative_to(ROOT)
    intact = target.read_text(encoding="utf-8")
    target.write_text(mutation.text, encoding="utf-8")
    started = time.process_time()
    try:
        load_stage_config(target)
    except ConfigError as error:
        took_s, lines = time.process_time() - started, error.details.get("mistakes", [error.problem])
    else:
        return "accepted"
    finally:
        target.write_text(intact, encoding="utf-8")
    told = "\n".join(lines)
    where = f"{target}:{mutation.line}: " if mutation.line else f"{target}:"
    wrong = [
        *([] if len(lines) == 1 else [f"{len(lines)} mistakes"]),
        *([] if lines[0].startswith(where) else ["another line"]),
        *(
            []
            if f": {mutation.path}: " in lines[0] or (mutation.in_yaml and mutation.path in lines[0])
            else ["no path"]
        ),
        *([] if mutation.meant in lines[0] else ["no suggestion"]),
        *([] if took_s < MAX_S else [f"{took_s:.1f} s"]),
    ]
    return f"{', '.join(wrong)} (line {mutation.line}, {mutation.path}, {mutation.meant}):\n    {told}" if wrong else ""


@pytest.fixture(scope="module")
def planted() -> list[tuple[Path, Mutation]]:
    return mutations(files(), number=NUMBER, seed=SEED)


def test_there_are_enough_mistakes_of_every_kind(planted):
    assert len(planted) == NUMBER
    kinds = Counter(mutation.name.partition("-")[0] for _, mutation in planted)
    assert len(kinds) == 13
    assert min(kinds.values()) >= 3
    assert len({file for file, _ in planted}) > 0.8 * len(files())


def test_every_mistake_is_reported_where_it_is(planted, tmp_path):
    for folder in ("configs", "serve"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("explorer"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_dir()}
    had_ray = "ray" in sys.modules
    found = {str(mutation): report(file, mutation, tmp_path) for file, mutation in planted}
    failed = {name: wrong for name, wrong in found.items() if wrong}
    assert not failed, f"{len(failed)} of {len(found)}:\n" + "\n".join(
        f"{name}: {what}" for name, what in failed.items()
    )
    assert ("ray" in sys.modules) == had_ray
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_dir()} == before
