"""Read the tensors of a ``best_model.pt`` without running any of its content."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cytoray.errors import ModelError

_WRAPPERS = ("model_state_dict", "state_dict", "model", "module", "net")
_CHUNK_BYTES = 2**20
# Exceptions that torch.load raises for damaged files and files that are not checkpoints.
_UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError,
    LookupError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError, ImportError, OSError,
)  # fmt: skip


def read_tensors(file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a ``torch.save`` file by name, as stored, and notes on where they were found.

    A plain state dict, or a dict that holds one under one of ``_WRAPPERS``, perhaps nested. The tensors
    may be views of the file itself. Raises ModelError for anything else; no code of the file is ever run.
    """
    content = _load(file)
    old = "the file has torch's old format, which has no checksums: changed weights would not have been noticed"
    notes = () if zipfile.is_zipfile(file) else (old,)
    while isinstance(content, dict):
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
        if wrapper is None:
            break
        notes = (*notes, f"the weights stand under {wrapper!r}; what stands beside them is not used")
        content = content[wrapper]
    if not isinstance(content, dict):
        raise _no_weights(file, f"it holds a {type(content).__name__}")
    if not content:
        raise _no_weights(file, "it holds an empty dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _no_weights(file, f"{name!r} is a {type(value).__name__}")
        _check_storage(value, name=name, file=file)
    return {name: value.detach() for name, value in content.items()}, notes


def _load(file: Path) -> Any:
    """Load the file with torch's weights-only unpickler."""
    file.open("rb").close()  # a file that may not be opened is an OSError, and not called damaged
    try:
        mapped = _can_be_mapped(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old and odd pickles; what it lets through is checked below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it asks for {refused[1]}, which weights do not need"
            if refused
            else "it is truncated, damaged or not a torch.save file of tensors only"
        )
        raise ModelError(
            f"{file} is rejected: {reason}. No code of it was run.",
            remedy="Give a state dict: torch.save(model.state_dict(), 'best_model.pt').",
            file=str(file),
            **({"refused": refused[1]} if refused else {}),
        ) from error


def _can_be_mapped(file: Path) -> bool:
    """Whether the file can be memory-mapped; ModelError if a record is damaged.

    torch does not verify checksums, so a flipped bit would become a weight.
    """
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        for record in records:
            if not _is_intact(archive, record):
                raise ModelError(
                    f"{file} is damaged: the bytes of its record {record.filename} are not those that were saved. "
                    "No code of it was run.",
                    remedy="Copy the checkpoint again from its source.",
                    file=str(file),
                    record=record.filename,
                )
        return all(record.compress_type == zipfile.ZIP_STORED for record in records)


def _is_intact(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    if record.CRC == 0:  # saved without checksums (torch.serialization.set_crc32_options)
        return True
    try:
        with archive.open(record) as stream:
            while stream.read(_CHUNK_BYTES):
                pass
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return False
    return True


def _check_storage(tensor: Tensor, *, name: str, file: Path) -> None:
    """Refuse a tensor that is not a plain array, or whose shape exceeds its storage."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise _no_weights(file, f"tensor {name} is {tensor.layout}, {tensor.dtype}, on {tensor.device.type}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise _no_weights(file, f"tensor {name} claims shape {tuple(tensor.shape)}, more than is stored")


def _no_weights(file: Path, reason: str) -> ModelError:
    return ModelError(
        f"{file} is not a state dict: {reason}. No code of it was run.",
        remedy="Give a dict from names to tensors: torch.save(model.state_dict(), 'best_model.pt').",
        file=str(file),
    )
