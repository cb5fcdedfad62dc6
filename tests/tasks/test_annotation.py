"""Annotation is judged against labels that the model knows, or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytoray.corpus.reading import NamedCells
from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tasks.annotation import Baseline, evaluate
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary


def test_labels_that_the_model_does_not_know_are_refused(tmp_path: Path):
    vocabulary = GeneVocabulary([*(f"GENE{number}" for number in range(20)), "<pad>", "<cls>", "<eoc>"])
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=4, feedforward_width=16, num_layers=1, num_labels=2
    )
    bundle = ModelBundle(ScGPT(shape, pad_id=vocabulary.pad_id), vocabulary, TokenizerConfig(), ("0", "1"))
    cells = SparseCells(
        np.arange(4, dtype=np.int32), np.ones(4, np.float32), np.array([0, 2, 4]), np.arange(2, dtype=np.uint64)
    )
    held_out = NamedCells(cells, ("a", "b"), ("0.0", "1.0"))
    baseline = Baseline(str(tmp_path / "store"), "no-corpus", "leiden")
    with pytest.raises(ModelError, match=r"share no label: the cells have '0.0', '1.0', the model '0', '1'") as error:
        evaluate(bundle, held_out, baseline, folder=tmp_path / "report")
    assert "label_key" in str(error.value.remedy)
    assert not (tmp_path / "report").exists()
