"""Small models, the requests that are sent to them, and their offline answers, with which all others are compared."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from request_bodies import json_body

from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.predictor import CellPredictor, Predictions
from cytoray.model.transformer import ScGPT
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

GENES = tuple(f"GENE{number:02d}" for number in range(40))
LABELS = ("B", "T", "NK")
SIZES = (1, 1, 2, 3, 5, 8, 1, 4)  # cells of the requests that are sent in turn
TOLERANCE = 1e-5


def write_model(
    folder: Path, *, seed: int, genes: tuple[str, ...] = GENES, num_labels: int = len(LABELS), is_finite: bool = True
) -> Path:
    """Write the bundle of a small model whose answers depend on ``seed``."""
    vocabulary = GeneVocabulary(genes)
    config = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=4, feedforward_width=24, num_layers=2, dropout=0.0,
        num_labels=num_labels,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = ScGPT(config, pad_id=vocabulary.pad_id)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) if is_finite else torch.nan)
    bundle = ModelBundle(model.eval(), vocabulary, TokenizerConfig(max_length=24), LABELS[:num_labels])
    save_bundle(bundle, folder)
    return folder


def make_counts(num_cells: int, *, seed: int) -> sp.csr_matrix:
    """Make counts over the genes, no cell without any."""
    dense = np.random.default_rng(seed).poisson(1.0, (num_cells, len(GENES))).astype(np.float32)
    dense[:, 0] += 1
    return sp.csr_matrix(dense)


def predict_offline(bundle: ModelBundle, counts: sp.csr_matrix) -> Predictions:
    """Answer without a service."""
    rows = np.arange(counts.shape[0], dtype=np.uint64)
    cells = SparseCells(counts.indices.astype(np.int32), counts.data, counts.indptr.astype(np.int64), rows)
    return CellPredictor(bundle, empty_cells="nan").predict(cells)


@dataclass
class Oracle:
    """The requests, and what each version of the model answers to them."""

    counts: list[sp.csr_matrix] = field(
        default_factory=lambda: [make_counts(size, seed=number) for number, size in enumerate(SIZES)]
    )
    answers: dict[str, list[Predictions]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bodies = [json_body(GENES, counts) for counts in self.counts]

    def learn(self, version: str, folder: Path) -> None:
        """Compute the answers of a version from its bundle."""
        bundle = load_bundle(folder)
        self.answers[version] = [predict_offline(bundle, counts) for counts in self.counts]

    def find_fault(self, number: int, content: bytes) -> str | None:
        """Return what is wrong with the answer to request ``number`` modulo their count; None if nothing is."""
        answer = json.loads(content)
        embeddings = np.array([cell["embedding"] for cell in answer["cells"]], np.float32)
        return self.compare(number, answer["model"]["version"], embeddings, [cell["label"] for cell in answer["cells"]])

    def compare(self, number: int, version: str, embeddings: Any, labels: list[Any]) -> str | None:
        """Compare an answer with the offline one of the version that it names."""
        if version not in self.answers:
            return f"unknown version {version}"
        expected = self.answers[version][number % len(self.counts)]
        if embeddings.shape != expected.embeddings.shape:
            return f"{len(embeddings)} cells, expected {len(expected.embeddings)}"
        off = float(np.abs(embeddings - expected.embeddings).max())
        best = [expected.labels[column] for column in expected.probabilities.argmax(1)]
        if not off <= TOLERANCE or labels != best:
            return f"differs by {off:g} from version {version}, labels {labels} and {best}"
        return None
