"""Damage anywhere in a source of any format ends in our errors or in numbers, never in another exception."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cytoray.corpus.readers import turned
from cytoray.errors import CytorayError


@pytest.mark.slow
def test_flipped_bytes_in_every_format(format_name, write_format, plant, build_adata, open_reader, tmp_path):
    path = write_format(format_name, build_adata(plant(0)), tmp_path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = {file: file.read_bytes() for file in files}
    messages: list[str] = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        file = files[rng.integers(len(files))]
        damaged = np.frombuffer(whole[file], np.uint8).copy()
        reach = len(damaged) if seed % 2 else min(2048, len(damaged))  # the structure lies in front
        where = rng.integers(0, reach, rng.integers(1, 20)) if reach else []
        damaged[where] ^= rng.integers(1, 256, len(where), dtype=np.uint8)
        file.write_bytes(damaged.tobytes())
        turned._kept.clear()
        try:
            with warnings.catch_warnings(), open_reader(path) as reader:
                warnings.simplefilter("ignore")  # what pandas and zarr think of damaged numbers
                description = reader.describe()
                reader.read_rows(0, description.num_cells)
        except CytorayError as error:
            messages.append(str(error))
        finally:
            file.write_bytes(whole[file])
    assert len(messages) > 5
    assert all(str(path) in message and "\n" not in message for message in messages)
