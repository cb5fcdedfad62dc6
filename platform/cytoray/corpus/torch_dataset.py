"""A corpus as a plain torch ``IterableDataset``; no Ray:

    dataset = CorpusDataset(open_stream("s3://bucket/store", "human", options), start=0, stop=1000)
    for cells in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2):
        ...  # cells["gene_ids"] (64, L) int32, cells["values"] (64, L) int8, cells["lengths"] (64,)

Minibatches come as dicts of narrow tensors: widen them on the device. Two workers interleave whole steps, so the order
is the stream's for any number of workers. None, with the dataset's own threads, is usually faster: every worker decodes
all row groups, and what it makes crosses to the parent by shared memory. Start them by ``spawn``, not by ``fork``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from cytoray.corpus.stream import CorpusStream
from cytoray.corpus.streaming.batches import StepBatch

SIGNED = {"u2": np.int32, "u4": np.int64, "u8": np.int64}  # torch computes with none of them; ids keep their bits


class CorpusDataset(IterableDataset[dict[str, Any]]):
    """One rank's minibatches of the steps ``start`` to ``stop``, in order.

    ``rank`` and ``world_size`` default to torch.distributed's where a process group is there. Under DataLoader workers
    use ``batch_size=None``: worker w makes the steps start + w, start + w + num_workers, ... To go on after step n,
    make another dataset with ``start=n + 1``.
    """

    def __init__(
        self, stream: CorpusStream, *, start: int = 0, stop: int, rank: int | None = None, world_size: int | None = None
    ) -> None:
        super().__init__()
        distributed = dist.is_available() and dist.is_initialized()
        self.stream, self.start, self.stop = stream, start, stop
        self.rank = rank if rank is not None else (dist.get_rank() if distributed else 0)
        self.world_size = world_size if world_size is not None else (dist.get_world_size() if distributed else 1)
        assert stream.options.token_budget is None, "workers deal whole steps: use read_steps for a token budget"

    def __len__(self) -> int:
        """Steps."""
        return self.stop - self.start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Steps of this worker, filled on two threads where there is but one process."""
        info = get_worker_info()
        every, first, threads = (1, 0, 2) if info is None else (info.num_workers, info.id, 1)
        steps = range(self.start + first, self.stop, every)
        share = {"rank": self.rank, "world_size": self.world_size, "threads": threads}
        for chunk in self.stream.read_chunks(steps, **share):
            yield from map(to_tensors, chunk.batches())


def to_tensors(batch: StepBatch) -> dict[str, Any]:
    """A micro-batch as a dict: ``step``, ``epoch`` and a tensor of each array, uint16 as int32, cell ids as int64."""
    arrays = {name: value for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
    for name, fields in (batch.modalities or {}).items():
        arrays |= {f"{name}/{field}": value for field, value in fields.items()}
    return {"step": batch.step, "epoch": batch.epoch} | {name: _tensor(array) for name, array in arrays.items()}


def _tensor(array: np.ndarray[Any, np.dtype[Any]]) -> torch.Tensor:
    signed = SIGNED.get(array.dtype.str[1:])
    if signed is not None:
        array = array.view(np.int64) if array.dtype == np.uint64 else array.astype(signed)
    return torch.from_numpy(np.require(array, requirements="W"))
