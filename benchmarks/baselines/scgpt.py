"""scGPT's own binning and collating, executed from its published wheel (0.2.4) without what it depends on."""

# C cells, N non-zero entries

from __future__ import annotations

import logging
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

VERSION = "0.2.4"
PAD_ID, CLS_ID, PAD_VALUE, MAX_LENGTH = 60_694, 60_695, -2, 1_200
MODULES = ("preprocess", "data_collator")


def load_scgpt(cache: Path) -> types.ModuleType:
    """The package ``scgpt`` with ``preprocess`` and ``data_collator``; the wheel is fetched into ``cache`` once."""
    wheels = list(cache.glob(f"scgpt-{VERSION}-*.whl"))
    if not wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        subprocess.run([*command, f"scgpt=={VERSION}"], check=True)
        wheels = list(cache.glob(f"scgpt-{VERSION}-*.whl"))
    package = types.ModuleType("scgpt")
    package.__path__ = []
    package.logger = logging.getLogger("scgpt")  # type: ignore[attr-defined]
    stubs = {"scgpt": package, **_stubs()}
    sys.modules.update(stubs)
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in MODULES:
            module = types.ModuleType(f"scgpt.{name}")
            module.__package__ = "scgpt"
            sys.modules[f"scgpt.{name}"] = module
            exec(compile(wheel.read(f"scgpt/{name}.py"), f"scgpt/{name}.py", "exec"), module.__dict__)
            setattr(package, name, module)
    for name in stubs:
        if name != "scgpt":
            del sys.modules[name]
    return package


def _stubs() -> dict[str, types.ModuleType]:
    """Names that scGPT imports for what is not measured here; what is loaded already is left alone."""
    wanted = {"scanpy": (), "scanpy.get": ("_get_obs_rep", "_set_obs_rep"), "anndata": ("AnnData",)}
    stubs = {}
    for name, attributes in wanted.items():
        if name in sys.modules:
            continue
        module = types.ModuleType(name)
        for attribute in attributes:
            setattr(module, attribute, None)
        stubs[name] = module
    return stubs


def make_collator(package: types.ModuleType, *, binning: bool = True) -> Any:
    """The collator with the settings of scGPT's pretraining: 51 bins, 1,200 tokens, 40 % masked."""
    return package.data_collator.DataCollator(
        do_padding=True, pad_token_id=PAD_ID, pad_value=PAD_VALUE, do_mlm=True, do_binning=binning, mlm_probability=0.4,
        mask_value=-1, max_length=MAX_LENGTH, sampling=True, keep_first_n_tokens=1,
    )  # fmt: skip


def bin_rows(package: types.ModuleType, values: np.ndarray, indptr: np.ndarray) -> None:
    """Bin the non-zero values (N,) of every cell (C + 1,), a row at a time, as its Preprocessor and collator do."""
    for start, stop in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True):
        package.preprocess.binning(values[start:stop], 51)


def make_examples(values: np.ndarray, gene_ids: np.ndarray, indptr: np.ndarray) -> list[dict[str, torch.Tensor]]:
    """Cells as the collator's examples: ``<cls>`` first, int64 ids, float32 values. It bins in place: make anew."""
    examples = []
    for start, stop in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True):
        genes = np.concatenate([[CLS_ID], gene_ids[start:stop]]).astype(np.int64)
        expressions = np.concatenate([[PAD_VALUE], values[start:stop]]).astype(np.float32)
        examples.append({"genes": torch.from_numpy(genes), "expressions": torch.from_numpy(expressions)})
    return examples


def collate_all(collator: Any, examples: list[dict[str, torch.Tensor]], *, batch_size: int = 32) -> None:
    """Collate all examples batch by batch (scGPT's batch size by default)."""
    for start in range(0, len(examples), batch_size):
        collator(examples[start : start + batch_size])
