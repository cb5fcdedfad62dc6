"""Take apart a tree of dataclasses into arrays by name and JSON, and put it together again: no code is run.

Only the classes that the reader names are built, from their fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Kinds = Mapping[str, type[Any]]  # the classes that may be built, by name


def kinds_of(*kinds: type[Any]) -> dict[str, type[Any]]:
    """Return classes by name, as ``unpack`` takes them."""
    return {kind.__name__: kind for kind in kinds}


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
    if isinstance(value, list):
        return {"list": [pack(one, arrays, f"{name}.{place}") for place, one in enumerate(value)]}
    if isinstance(value, tuple):
        return [pack(one, arrays, f"{name}.{place}") for place, one in enumerate(value)]
    assert value is None or isinstance(value, str | int | float), f"{name}: {type(value)}"
    return value


def unpack(packed: Any, arrays: Mapping[str, Array], kinds: Kinds) -> Any:
    """Rebuild what ``pack`` took apart; raises KeyError or TypeError for anything else."""
    if isinstance(packed, list):
        return tuple(unpack(one, arrays, kinds) for one in packed)
    if not isinstance(packed, dict):
        return packed
    if "array" in packed:
        return arrays[packed["array"]]
    if "table" in packed:
        return {key: unpack(one, arrays, kinds) for key, one in packed["table"].items()}
    if "list" in packed:
        return [unpack(one, arrays, kinds) for one in packed["list"]]
    return kinds[packed["kind"]](**{key: unpack(one, arrays, kinds) for key, one in packed["fields"].items()})
