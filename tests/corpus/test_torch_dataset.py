from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.torch_dataset import CorpusDataset
from cytoray.tokens.tokenizer import TokenizerConfig


@pytest.fixture
def stream(corpus) -> CorpusStream:
    options = StreamOptions(TokenizerConfig(), 1, 20, "kind", style="generative", ratios=(0.25, 0.75))
    return open_stream(corpus.store, "cells", options)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_workers_interleave_whole_steps_in_the_order_of_the_stream(stream, num_workers: int):
    dataset = CorpusDataset(stream, start=3, stop=25, rank=1, world_size=2)
    assert len(dataset) == 22
    context = "spawn" if num_workers else None
    loader = DataLoader(dataset, batch_size=None, num_workers=num_workers, multiprocessing_context=context)
    batches = list(loader)
    expected = list(stream.read_steps(3, 25, rank=1, world_size=2))
    assert [batch["step"] for batch in batches] == list(range(3, 25))
    for batch, other in zip(batches, expected, strict=True):
        for name, array in vars(other).items():
            if isinstance(array, np.ndarray):
                assert np.array_equal(batch[name].numpy().astype(array.dtype), array), name
        assert batch["gene_ids"].dtype == torch.int32
        assert batch["values"].dtype == torch.int8
        assert batch["cell_ids"].dtype == torch.int64


def test_ids_and_values_can_be_computed_with(stream):
    batch = next(iter(CorpusDataset(stream, stop=1)))
    assert batch["gene_ids"].long().max() < 70_000
    assert batch["values"].float().min() == -2
