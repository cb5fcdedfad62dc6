"""Scenarios of what a store keeps: ingest, garbage collection, checkpoints, and the export of a bundle."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import torch
from crash_driver import Scenario

from cytoray.corpus.config import IngestConfig
from cytoray.corpus.manifest import find_manifest
from cytoray.corpus.versions import gc, verify
from cytoray.model.bundle import load_bundle
from cytoray.model.bundle_files import DIGESTS
from cytoray.model.transformer import ScGPT
from cytoray.runs import find_bundle, record_uri
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.checkpoint import (
    CheckpointWriter,
    TrainerState,
    checkpoints_uri,
    latest_checkpoint,
    save_checkpoint,
)
from cytoray.training.config import PretrainConfig
from cytoray.training.export import ExportSpec, export_bundle
from cytoray.training.pretraining import build_model
from cytoray.training.result import TrainingResult
from cytoray.training.slices import Slice, Snapshot

STEPS, RUN = 3, "run"


def ingest_config(folder: Path, shared: Path) -> IngestConfig:
    """An ingest of several tasks and shards."""
    config = {
        "store": str(folder / "store"), "corpus": "cells", "sources": [{"uri": f"{shared / 'sources'}/"}],
        "cells_per_shard": 256, "rows_per_task": 100, "append": True,
    }  # fmt: skip
    return IngestConfig.model_validate_json(json.dumps(config))


def run_ingest(folder: Path, shared: Path) -> Any:
    """Ingest in this process; the digest of the cells."""
    from cytoray.corpus.ingest import ingest

    return ingest(ingest_config(folder, shared)).manifest.content_digest


def look_at_corpus(folder: Path) -> None:
    """No version, or a version whose files are all there and undamaged."""
    store = str(folder / "store")
    if find_manifest(store, "cells") is not None:
        assert verify(store, "cells").damaged == ()


def tidy_corpus(folder: Path) -> None:
    """Nothing but the files of the version is left."""
    gc(str(folder / "store"), dry_run=False, grace_s=0)
    left = {path for path in (folder / "store").rglob("*") if path.is_file()}
    assert not [path for path in left if "staging" in path.parts or path.name.endswith(".part")], left


def run_gc(folder: Path, shared: Path) -> Any:
    """Ingest, leave files of a dead writer, and collect them; what is left."""
    digest = run_ingest(folder, shared)
    place = folder / "store" / "corpora" / "cells"
    if not (folder / "planted").exists():
        for name in ("shards/loose-1", "shards/loose-2", "manifests/loose"):
            (place / name).write_bytes(b"left by a dead writer")
        (folder / "planted").touch()
    gc(str(folder / "store"), dry_run=False, grace_s=0)
    return [digest, sorted(path.name for path in place.rglob("*loose*"))]


def run_checkpoints(folder: Path, shared: Path) -> Any:
    """Write the checkpoints of three steps, of which the newest is kept; its weights."""
    store = str(folder / "store")
    found = latest_checkpoint(store, RUN)
    writer = CheckpointWriter(checkpoints_uri(store, RUN), keep=1, attempt=uuid.uuid4().hex, timeout_s=60)
    for step in range(1 if found is None else found.state.step + 1, STEPS + 1):
        value = torch.full((3,), float(step))
        state = TrainerState(step=step, manifest_digest="m", config_digest="c", history=(), metric=None)
        writer.submit(Snapshot({"w": value}, {"exp_avg.w": Slice.whole(value)}), state)
    writer.wait()
    writer.clean_up()
    last = latest_checkpoint(store, RUN)
    assert last is not None
    return [last.state.step, last.load_weights()["w"].tolist(), last.load_moments()["exp_avg.w"].tolist()]


def look_at_checkpoints(folder: Path) -> None:
    """No checkpoint, or one whose weights are those of its step."""
    found = latest_checkpoint(str(folder / "store"), RUN)
    if found is not None:
        assert found.load_weights()["w"].tolist() == [float(found.state.step)] * 3


def tidy_checkpoints(folder: Path) -> None:
    """Only the newest checkpoint is left, and only files that its commit names."""
    root = folder / "store" / "runs" / RUN / "checkpoints"
    assert [path.name for path in root.iterdir()] == [f"step-{STEPS:09d}"]
    found = latest_checkpoint(str(folder / "store"), RUN)
    assert found is not None
    here = {path.relative_to(root / f"step-{STEPS:09d}").as_posix() for path in root.rglob("*") if path.is_file()}
    assert here - set(found.files) == {"COMMIT.json"}


def _export_config(folder: Path) -> PretrainConfig:
    config = {
        "store": str(folder / "store"), "run": RUN, "corpus": "cells", "train": {"num_steps": 1, "cells_per_step": 2},
        "model": {"width": 16, "num_heads": 2, "feedforward_width": 16, "num_layers": 1, "dropout": 0.0},
        "tracking": {"uri": "http://127.0.0.1:9"},
    }  # fmt: skip
    return PretrainConfig.model_validate_json(json.dumps(config))


def run_export(folder: Path, shared: Path) -> Any:
    """Export the bundles of a run's best and last checkpoint; the digests of their files but the lineage."""
    config, vocabulary = _export_config(folder), GeneVocabulary.load_default()
    torch.manual_seed(0)
    weights = dict(ScGPT(build_model(config), pad_id=vocabulary.pad_id).state_dict())
    state = TrainerState(step=1, manifest_digest="m", config_digest="c", history=(), metric=None)
    saved = save_checkpoint(checkpoints_uri(config.store, RUN), weights, {}, state)
    result = TrainingResult(saved, saved, "m", "c", None, skipped=False)
    spec = ExportSpec(build_model(config), vocabulary)
    found = []
    for which in ("best", "last"):
        record = export_bundle(config, result, spec, which=which)
        listing = json.loads((Path(record.uri) / DIGESTS).read_text())
        found.append({name: digest for name, digest in _flat(listing).items() if not name.startswith("lineage")})
    return found


def _flat(listing: dict[str, Any]) -> dict[str, str]:
    files = listing.get("files", listing)
    return {name: hashlib.sha256(json.dumps(entry).encode()).hexdigest() for name, entry in files.items()}


def look_at_bundle(folder: Path) -> None:
    """No record of a bundle, or one whose bundle is whole."""
    store = str(folder / "store")
    for which in ("best", "last"):
        if Path(record_uri(store, RUN, which=which)).exists():
            record = find_bundle(store, RUN, which=which)
            assert load_bundle(Path(record.uri)).digest == record.digest


def tidy_bundle(folder: Path) -> None:
    """No bundle is left that neither record names."""
    run, store = folder / "store" / "runs" / RUN, str(folder / "store")
    named = {Path(find_bundle(store, RUN, which=which).uri).name for which in ("best", "last")}
    assert {path.name for path in run.glob("bundle-*")} == named
    assert not list(run.rglob("*.part"))


SCENARIOS = {
    "ingest": Scenario(run_ingest, look_at_corpus, tidy_corpus, ("ingest",)),
    "gc": Scenario(run_gc, look_at_corpus, tidy_corpus, ("gc",)),
    "checkpoint": Scenario(run_checkpoints, look_at_checkpoints, tidy_checkpoints, ("checkpoint",)),
    "export": Scenario(run_export, look_at_bundle, tidy_bundle, ("export",)),
}
