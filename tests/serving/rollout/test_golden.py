"""Golden cells notice every other model and no float noise; free memory is read from the machine and its container."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cytoray.errors import ModelError, ServingError
from cytoray.model.bundle import ModelBundle
from cytoray.model.golden import GoldenCells, check_golden_cells, golden_cells
from cytoray.serving.rollout.memory import check_memory, free_bytes
from cytoray.tokens.vocabulary import GeneVocabulary


def scaled(bundle: ModelBundle, factor: float) -> ModelBundle:
    with torch.no_grad():
        for parameter in bundle.model.parameters():
            parameter.mul_(factor)
    return bundle


def shuffled(bundle: ModelBundle) -> ModelBundle:
    tokens = list(bundle.vocabulary.tokens)
    tokens[2], tokens[5] = tokens[5], tokens[2]
    return replace(bundle, vocabulary=GeneVocabulary(tokens))


def renamed(bundle: ModelBundle) -> ModelBundle:
    return replace(bundle, labels=("B", "T", "Mono"))


def of_other_genes(bundle: ModelBundle) -> ModelBundle:
    tokens = [token.replace("GENE", "OTHER") for token in bundle.vocabulary.tokens]
    return replace(bundle, vocabulary=GeneVocabulary(tokens))


def test_the_same_model_passes_and_others_do_not(build_bundle: Callable[..., ModelBundle]) -> None:
    text = golden_cells(build_bundle()).to_text()
    assert text == golden_cells(build_bundle()).to_text()
    assert len(GoldenCells.from_text(text).cells) == 3
    check_golden_cells(build_bundle(), text)
    check_golden_cells(scaled(build_bundle(), 1 + 1e-6), text)
    changes: dict[str, Any] = {
        "differ by": lambda bundle: scaled(bundle, 1.1),
        "embeddings differ": shuffled,
        "its labels are others": renamed,
        "its vocabulary lacks": of_other_genes,
        "not finite": lambda bundle: scaled(bundle, float("nan")),
    }
    for message, change in changes.items():
        with pytest.raises(ModelError, match=message):
            check_golden_cells(change(build_bundle()), text)
    with pytest.raises(ModelError, match="cannot be read"):
        check_golden_cells(build_bundle(), text.replace('"format":1', '"format":2'))


def test_a_container_limits_memory_and_too_little_is_refused(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 3000 kB\n")
    assert free_bytes(meminfo=meminfo, cgroup=tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(meminfo=meminfo, cgroup=tmp_path) == 3000 * 1024
    for name, content in {"max": "2000000", "current": "1500000", "stat": "anon 5\ninactive_file 100000\n"}.items():
        (tmp_path / f"memory.{name}").write_text(content)
    assert free_bytes(meminfo=meminfo, cgroup=tmp_path) == 600_000
    assert free_bytes(meminfo=tmp_path / "none", cgroup=tmp_path / "none") is None
    check_memory(1, margin_bytes=0, device=torch.device("cpu"))
    with pytest.raises(ServingError, match="MiB left"):
        check_memory(2**60, margin_bytes=0, device=torch.device("cpu"))
