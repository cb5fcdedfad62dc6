"""What became of each tensor of a public checkpoint: matched, renamed, missing, unexpected, of another shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cytoray.errors import ModelError
from cytoray.model.public_layout import BODY, PARTS, Shape

_SHOWN = 10  # names of a list in a message


@dataclass(frozen=True)
class CheckpointReport:
    """What became of each tensor of the file and of the model."""

    matched: tuple[str, ...] = ()  # tensors of the model that were found, those under another name included
    renamed: tuple[tuple[str, str], ...] = ()  # (name in the file, released name)
    missing: tuple[str, ...] = ()  # tensors of the model that are not in the file and keep their initial values
    unexpected: tuple[str, ...] = ()  # tensors of the file that the model has no use for
    reshaped: tuple[tuple[str, Shape, Shape], ...] = ()  # (name, wanted, found): not used, initial values are kept
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()  # choices that change results and that neither tensors nor args.json make

    def text(self) -> str:
        """The report as lines to be read."""
        counts = f"{len(self.matched)} tensors loaded, {len(self.renamed)} of them under another name"
        lines = [f"{counts}; {len(self.missing)} missing, {len(self.unexpected)} unexpected, "]
        lines[0] += f"{len(self.reshaped)} of another shape"
        lines += [f"  renamed     {old} -> {new}" for old, new in self.renamed[:2]]
        lines += [f"  renamed     … and {len(self.renamed) - 2} more likewise"] if len(self.renamed) > 2 else []
        lines += [f"  missing     {name}: keeps its initial values" for name in self.missing]
        lines += [f"  reshaped    {name} is {found}, {wanted} is wanted: keeps its initial values"
                  for name, wanted, found in self.reshaped]  # fmt: skip
        lines += [f"  unexpected  {name}: not used" for name in self.unexpected]
        lines += [f"  assumed     {text}" for text in self.assumed]
        return "\n".join([*lines, *(f"  note        {note}" for note in self.notes)])


def compare(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, file: Path, allow_missing: bool
) -> CheckpointReport:
    """Hold the file's tensors against the model's; ModelError for what may not be missing."""
    missing = tuple(name for name in expected if name not in tensors)
    reshaped = tuple(
        (name, tuple(wanted.shape), tuple(tensors[name].shape))
        for name, wanted in expected.items()
        if name in tensors and tensors[name].shape != wanted.shape
    )
    needed = [name for name in missing if name.startswith(BODY) or not allow_missing]
    if needed:
        raise ModelError(
            f"{file} lacks {len(needed)} of {len(expected)} tensors: {listing(needed)}.",
            remedy="Give the whole state dict."
            if any(name.startswith(BODY) for name in needed)
            else "Give the whole state dict, or allow missing tensors to start from initial values.",
            missing=needed,
        )
    for name, wanted, found in reshaped:
        if name.startswith(BODY) or not allow_missing:
            raise ModelError(
                f"{file}: tensor {name} has shape {found}, the model wants {wanted}.",
                remedy="Give the state dict of one scGPT model.",
                tensor=name,
                expected=list(wanted),
                found=list(found),
            )
    unexpected = tuple(name for name in tensors if name not in expected)
    parts = {name.partition(".")[0] + "." for name in expected}.intersection(BODY if allow_missing else {*BODY, *PARTS})
    if foreign := [name for name in unexpected if name.startswith(tuple(parts))]:
        raise ModelError(
            f"{file}: {len(foreign)} tensors are of an architecture that cytoray does not have: {listing(foreign)}.",
            remedy="Merge adapters into the weights before saving them. Other variants of gene, value and transformer "
            "layers are not supported; those of a head can be dropped by allowing missing tensors.",
            unexpected=foreign,
        )
    other = {name for name, _, _ in reshaped}
    matched = tuple(name for name in expected if name in tensors and name not in other)
    return CheckpointReport(matched, (), missing, unexpected, reshaped)


def as_stored(tensor: Tensor, wanted: Tensor, *, name: str) -> Tensor:
    """A copy of its own, in the model's type; ModelError for a tensor that is no weight."""
    if tensor.is_floating_point() != wanted.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ModelError(
            f"Tensor {name} holds {tensor.dtype}, the model wants {wanted.dtype}.",
            remedy="Give weights as floating-point numbers.",
            tensor=name,
        )
    # Copied, so that neither a changed file nor another tensor on the same storage changes the model.
    copy = tensor.to(wanted.dtype, copy=True, memory_format=torch.contiguous_format)
    if copy.is_floating_point() and not bool(torch.isfinite(copy).all()):
        bad = int((~torch.isfinite(copy)).sum())
        raise ModelError(
            f"Tensor {name} holds {bad} NaN or infinite values of {copy.numel()}.",
            remedy="The training diverged or the file is damaged; give an earlier checkpoint.",
            tensor=name,
        )
    return copy


def precisions(tensors: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Notes on tensors that had another precision."""
    kinds = Counter(tensors[name].dtype for name in used if tensors[name].dtype != used[name].dtype)
    return tuple(f"{number} tensors were {kind} and are float32 now" for kind, number in kinds.items())


def listing(names: Sequence[str]) -> str:
    """Names, the first few of them if there are many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
