"""How the ranks of a test find each other: by a file, as a port that was free may be taken before they listen on it."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import torch.distributed as dist


def new_meeting(folder: Path) -> str:
    """Return the path of a file that does not exist yet, to be given to ``join`` in every rank."""
    return str(folder / f"ranks-{uuid4().hex}")


def join(meeting: str, *, rank: int, world_size: int) -> None:
    """Form a gloo group with the other ranks of ``meeting``, on the CPU."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), DS_ACCELERATOR="cpu")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
