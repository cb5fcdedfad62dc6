"""Take apart a tree of frozen dataclasses into arrays by name and JSON, and put it together again: no code is run.

Only the classes of ``KINDS`` are built, from their fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.errors import ModelError
from cytoray.evaluation.conformal import PredictionSets, Strangeness
from cytoray.evaluation.stacking import Blend
from cytoray.evaluation.voters import GeneFeatures, RadialFeatures, Voter
from cytoray.tasks.mapping.mapper import Mapper
from cytoray.tasks.mapping.oddness import Oddness
from cytoray.tasks.mapping.spaces import Space, Whitening

Array = npt.NDArray[Any]
KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Blend, GeneFeatures, Mapper, Oddness, PredictionSets, RadialFeatures, Space, Strangeness, Voter, Whitening
    )
}  # fmt: skip


def pack(value: Any, arrays: dict[str, Array], name: str) -> Any:
    """Return ``value`` as JSON data; its arrays are put into ``arrays`` under names that begin with ``name``."""
    if isinstance(value, np.ndarray):
        arrays[name] = np.ascontiguousarray(value)
        return {"array": name}
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value):
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        packed = {key: pack(one, arrays, f"{name}.{key}") for key, one in fields.items()}
        return {"kind": type(value).__name__, "fields": packed}
    if isinstance(value, Mapping):
        return {"table": {key: pack(one, arrays, f"{name}.{key}") for key, one in value.items()}}
    if isinstance(value, tuple):
        return [pack(one, arrays, f"{name}.{place}") for place, one in enumerate(value)]
    assert value is None or isinstance(value, str | int | float), f"{name}: {type(value)}"
    return value


def unpack(packed: Any, arrays: Mapping[str, Array]) -> Any:
    """Rebuild what ``pack`` took apart; raises ModelError for anything else."""
    if isinstance(packed, list):
        return tuple(unpack(one, arrays) for one in packed)
    if not isinstance(packed, dict):
        return packed
    try:
        if "array" in packed:
            return arrays[packed["array"]]
        if "table" in packed:
            return {key: unpack(one, arrays) for key, one in packed["table"].items()}
        return KINDS[packed["kind"]](**{key: unpack(one, arrays) for key, one in packed["fields"].items()})
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"The reference does not fit this version of cytoray ({error}).", remedy="Build the reference again."
        ) from error
