"""The same random weights in our model and in the plain re-creation of the original."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import common
from benchmarks.baselines import scgpt_model as original
from cytoray.model.bundle import ModelBundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

SIZES = {"width": 128, "num_heads": 4, "feedforward_width": 128, "num_layers": 3} if common.QUICK else {
    "width": 512, "num_heads": 8, "feedforward_width": 512, "num_layers": 12,
}  # fmt: skip


def build_models(*, dropout: float = 0.2) -> tuple[ModelBundle, original.OriginalModel]:
    """Our bundle and the original's model, of the published sizes."""
    torch.manual_seed(0)
    vocabulary = GeneVocabulary.load_default()
    theirs = original.OriginalModel(vocabulary.size, **SIZES, dropout=dropout, pad_id=vocabulary.pad_id)
    config = ModelConfig(vocabulary_size=vocabulary.size, **SIZES, dropout=dropout, unknown_out_proj=False)
    ours = ScGPT(config, pad_id=vocabulary.pad_id)
    ours.load_state_dict({_our_name(name): tensor.clone() for name, tensor in theirs.state_dict().items()})
    return ModelBundle(ours.eval(), vocabulary, TokenizerConfig()), theirs


def examples(cells: SparseCells, *, cls_id: int) -> list[original.Example]:
    """The cells as the original's examples."""
    spans = zip(cells.indptr[:-1], cells.indptr[1:], strict=True)
    return [
        original.make_example(cells.gene_ids[start:stop].astype(np.int64), cells.values[start:stop], cls_id=cls_id)
        for start, stop in spans
    ]


def _our_name(name: str) -> str:
    return name.replace("in_proj_weight", "Wqkv.weight").replace("in_proj_bias", "Wqkv.bias")
