"""The classes of a reference's mapper that are stored as arrays and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cytoray.errors import ModelError
from cytoray.evaluation.conformal import PredictionSets, Strangeness
from cytoray.evaluation.stacking import Blend
from cytoray.evaluation.voters import GeneFeatures, RadialFeatures, Voter
from cytoray.tasks.mapping.mapper import Mapper
from cytoray.tasks.mapping.oddness import Oddness
from cytoray.tasks.mapping.spaces import Space, Whitening
from cytoray.tasks.packing import Array, kinds_of, unpack

KINDS = kinds_of(
    Blend, GeneFeatures, Mapper, Oddness, PredictionSets, RadialFeatures, Space, Strangeness, Voter, Whitening
)


def unpack_mapper(packed: Any, arrays: Mapping[str, Array]) -> Mapper:
    """Rebuild a mapper; raises ModelError if it was packed by another version of cytoray."""
    try:
        mapper = unpack(packed, arrays, KINDS)
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"The reference does not fit this version of cytoray ({error}).", remedy="Build the reference again."
        ) from error
    assert isinstance(mapper, Mapper), "a mapper was packed"
    return mapper
