"""An annotator as one file of arrays (safetensors) with its settings as JSON in the header: reading it runs no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from cytoray.errors import ModelError
from cytoray.evaluation.annotator import Annotator, NearTraining
from cytoray.evaluation.conformal import PredictionSets, Strangeness
from cytoray.evaluation.stacking import Blend, Choice
from cytoray.evaluation.voters import GeneFeatures, RadialFeatures, Voter

FORMAT = 1
FILE = "annotator.safetensors"  # name of a bundle's attachment
Array = npt.NDArray[Any]


def to_bytes(annotator: Annotator) -> bytes:
    """Return the file's content; equal annotators give equal bytes."""
    parts = _Writer()
    about = {
        "format": FORMAT,
        "labels": annotator.labels,
        "voters": {name: parts.voter(name, voter) for name, voter in annotator.voters.items()},
        "choice": parts.choice("choice", annotator.choice),
        "level": annotator.sets.level,
        "near": parts.features("near", annotator.near.features),
        "joined": None if annotator.joined is None else parts.choice("joined", annotator.joined),
    }
    parts.arrays |= {
        "frequencies": annotator.frequencies,
        "limits": annotator.sets.limits,
        "near.points": annotator.near.points,
        "near.codes": annotator.near.codes,
        "near.usual": annotator.near.usual,
        "distances": np.concatenate(annotator.strangeness.distances),
        "distances.sizes": np.array([len(each) for each in annotator.strangeness.distances], np.int64),
    }
    arrays = {name: np.ascontiguousarray(parts.arrays[name]) for name in sorted(parts.arrays)}
    return safetensors.numpy.save(arrays, metadata={"about": json.dumps(about, sort_keys=True)})


def from_bytes(data: bytes, *, num_genes: int) -> Annotator:
    """Read an annotator for a vocabulary of ``num_genes``; raises ModelError if the content does not fit."""
    try:
        size = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["about"])
        arrays = safetensors.numpy.load(data)
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError("The annotator cannot be read.", remedy="Fine-tune the model again.") from error
    if about.get("format") != FORMAT:
        raise ModelError(
            f"The annotator has format {about.get('format')}, this version of cytoray reads {FORMAT}.",
            remedy="Use the version of cytoray that wrote the model, or a newer one.",
        )
    try:
        found = _read(about, arrays)
    except (KeyError, TypeError) as error:
        raise ModelError(f"The annotator lacks a part: {error}.", remedy="Fine-tune the model again.") from error
    genes = [voter.features.genes.max() for voter in found.voters.values() if len(voter.features.genes)]
    if max(genes, default=0) >= num_genes:
        raise ModelError("The annotator has genes that the vocabulary lacks.", remedy="Fine-tune the model again.")
    return found


def _read(about: Mapping[str, Any], arrays: Mapping[str, Array]) -> Annotator:
    ends = np.cumsum(arrays["distances.sizes"])[:-1]
    return Annotator(
        tuple(about["labels"]),
        {name: _voter(name, kept, arrays) for name, kept in about["voters"].items()},
        _choice("choice", about["choice"], arrays),
        arrays["frequencies"],
        PredictionSets(arrays["limits"], about["level"]),
        NearTraining(
            _features("near", about["near"], arrays), arrays["near.points"], arrays["near.codes"], arrays["near.usual"]
        ),
        Strangeness(tuple(np.split(arrays["distances"], ends))),
        None if about["joined"] is None else _choice("joined", about["joined"], arrays),
    )


@dataclass
class _Writer:
    """The arrays of the parts that were described so far."""

    arrays: dict[str, Array] = field(default_factory=dict)

    def features(self, name: str, features: GeneFeatures) -> dict[str, Any]:
        """Keep features of genes."""
        for part in ("genes", "centre", "scale", "axes"):
            if (array := getattr(features, part)) is not None:
                self.arrays[f"{name}.{part}"] = array
        return {"view": features.view}

    def voter(self, name: str, voter: Voter) -> dict[str, Any]:
        """Keep a voter."""
        about = self.features(name, voter.features) | {"strength": voter.strength, "sharpness": None}
        self.arrays |= {f"{name}.weights": voter.weights, f"{name}.intercept": voter.intercept}
        if voter.radial is not None:
            self.arrays |= {f"{name}.landmarks": voter.radial.landmarks, f"{name}.mixing": voter.radial.mixing}
            about["sharpness"] = float(voter.radial.sharpness)
        return about

    def choice(self, name: str, choice: Choice) -> dict[str, Any]:
        """Keep a choice and its two blends."""
        about: dict[str, Any] = {"chosen": choice.chosen, "why": choice.why, "scores": choice.scores}
        for part, blend in (("product", choice.product), ("baseline", choice.baseline)):
            self.arrays[f"{name}.{part}"] = blend.adjustment
            about[part] = {"weights": blend.weights, "temperature": blend.temperature}
        return about


def _features(name: str, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> GeneFeatures:
    genes, centre, scale = (arrays[f"{name}.{part}"] for part in ("genes", "centre", "scale"))
    return GeneFeatures(about["view"], genes, centre, scale, arrays.get(f"{name}.axes"))


def _voter(name: str, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> Voter:
    radial = None
    if about["sharpness"] is not None:
        sharpness = np.float32(about["sharpness"])
        radial = RadialFeatures(arrays[f"{name}.landmarks"], sharpness, arrays[f"{name}.mixing"])
    weights, intercept = arrays[f"{name}.weights"], arrays[f"{name}.intercept"]
    return Voter(_features(name, about, arrays), radial, weights, intercept, about["strength"])


def _choice(name: str, about: Mapping[str, Any], arrays: Mapping[str, Array]) -> Choice:
    product, baseline = (
        Blend(about[part]["weights"], arrays[f"{name}.{part}"], about[part]["temperature"])
        for part in ("product", "baseline")
    )
    return Choice(product, baseline, about["chosen"], about["why"], about["scores"])
