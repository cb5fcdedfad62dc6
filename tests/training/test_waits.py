"""A collective of any process group ends by an error when the other rank does not come."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from processes import run_together

CODE = """
import sys
import torch
import torch.distributed as dist
from cytoray.training.steps import limit_waits

rank, place = int(sys.argv[1]), sys.argv[2]
store = dist.FileStore(place, 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
group = dist.new_group()  # as DeepSpeed makes its own: by default its collectives wait half an hour
limit_waits(1.0)
if rank:
    store.wait(["given up"])
else:
    try:
        dist.all_reduce(torch.ones(1), group=group)
    except RuntimeError:
        store.set("given up", "yes")
        print("given up")
"""


@pytest.mark.timeout(200)
def test_a_group_made_by_others_does_not_wait_for_ever(tmp_path: Path) -> None:
    ranks = [[sys.executable, "-c", CODE, str(rank), str(tmp_path / "store")] for rank in (0, 1)]
    assert "given up" in run_together(ranks, timeout_s=150)[0]
