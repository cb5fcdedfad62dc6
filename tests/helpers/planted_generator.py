"""A planted screen: cells of two batches, control and perturbed, whose perturbations change known genes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_corpus import write_corpus

from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

DEFAULT = GeneVocabulary.load_default()
GENES = ("STAT1", "IRF1", *DEFAULT.tokens[500:518])  # SMAD4 and BRD4 are hit, but were not measured
TARGETS = ("STAT1", "IRF1", "SMAD4", "BRD4", "STAT1+BRD4")
CHANGED = {"STAT1": (4, 5, 6), "IRF1": (5, 6, 7), "SMAD4": (10, 11), "BRD4": (12, 13)}  # columns
CELLS_PER_KIND = 16  # in each of two batches


def write_screen(store: str, *, others: tuple[str, ...] = ("unassigned",)) -> dict[str, Any]:
    """Write the corpus ``cells``; its counts and obs."""
    rng = np.random.default_rng(0)
    kinds = [kind for kind in ("control", *TARGETS, *others) for _ in range(2 * CELLS_PER_KIND)]
    batches = ["one", "two"] * (len(kinds) // 2)
    means = np.full((len(kinds), len(GENES)), 20.0)
    for row, (kind, batch) in enumerate(zip(kinds, batches, strict=True)):
        means[row, -2:] *= 3.0 if batch == "two" else 1.0
        for target in kind.split("+"):
            means[row, list(CHANGED.get(target, ()))] *= 4.0
            if target in GENES:
                means[row, GENES.index(target)] *= 0.2
    counts = rng.poisson(means).astype(np.float32)
    obs: dict[str, list[str | None]] = {"perturbation": list(kinds), "batch": list(batches)}
    write_corpus(store, counts, np.array([DEFAULT.index[gene] for gene in GENES]), obs)
    return {"counts": counts, **obs}


def save_base(folder: Path, **shape: Any) -> Path:
    """A random model of genes and values."""
    torch.manual_seed(0)
    size: dict[str, Any] = {"width": 16, "num_heads": 2, "feedforward_width": 16, "num_layers": 1, "dropout": 0.0}
    config = ModelConfig(vocabulary_size=DEFAULT.size, num_labels=0, **(size | shape))
    save_bundle(ModelBundle(ScGPT(config, pad_id=DEFAULT.pad_id), DEFAULT, TokenizerConfig()), folder / "base")
    return folder / "base"


def build_settings(store: str, base: Path, journal: Path) -> dict[str, Any]:
    """The smallest run over the screen, in which one perturbation is held out."""
    return {
        "store": store,
        "run": "run",
        "corpus": "cells",
        "initial": str(base),
        "perturbation": {"batch_key": "batch"},
        "train": {"num_steps": 12, "cells_per_step": 16, "checkpoint_every": 4},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "epsilon": 1e-3},
        "validation": {"select": "perturbation == 'IRF1'"},
        "workers": {"num_workers": 2},
        "tracking": {"uri": "http://127.0.0.1:9", "journal_folder": str(journal)},
    }
