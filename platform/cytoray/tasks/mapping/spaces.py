"""Spaces in which cells are neighbours: of genes, projected without or with labels, of a transformer, or of both.

All that is learned is arrays; a cell's point is a unit vector, so that the inner product is the cosine.
"""

# C cells, P components, L discriminants, D width of embeddings, S dimensions of a space, K labels

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from cytoray.evaluation.voters import GeneFeatures

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
COMPONENTS, DISCRIMINANTS, EMBEDDINGS, BOTH = "components", "discriminants", "embeddings", "components and embeddings"
NUM_WHITENED = 50
SHRINKAGE = 0.1  # of the scatter within labels, towards a sphere
SMALLEST = 1e-9


@dataclass(frozen=True, eq=False)
class Whitening:
    """Principal components of embeddings, each divided by its standard deviation."""

    centre: Float32  # (D,)
    axes: Float32  # (D, W)

    def transform(self, embeddings_CD: Float32) -> Float32:
        """Return whitened embeddings, (C, W)."""
        return np.asarray((embeddings_CD - self.centre) @ self.axes, np.float32)


@dataclass(frozen=True, eq=False)
class Space:
    """A projection of cells onto the unit sphere; ``discriminants`` and ``whitening`` are part of some spaces."""

    name: str
    features: GeneFeatures  # principal components of genes
    discriminants: Float32 | None = None  # (P, L)
    whitening: Whitening | None = None

    @property
    def uses_embeddings(self) -> bool:
        """Whether a transformer is needed."""
        return self.name in (EMBEDDINGS, BOTH)

    def points(self, components_CP: Float32, embeddings_CD: Float32 | None) -> Float32:
        """Return unit vectors (C, S) of cells with these components of genes and, if they are used, embeddings."""
        if self.name == COMPONENTS:
            return unit(components_CP)
        if self.name == DISCRIMINANTS:
            assert self.discriminants is not None, "fitted with labels"
            return unit(components_CP @ self.discriminants)
        assert self.whitening is not None, "fitted with embeddings"
        assert embeddings_CD is not None, "this space needs embeddings"
        whitened = unit(self.whitening.transform(embeddings_CD))
        return whitened if self.name == EMBEDDINGS else unit(np.hstack([unit(components_CP), whitened]))


def fit_spaces(
    features: GeneFeatures, components_CP: Float32, codes_C: Int64, embeddings_CD: Float32 | None
) -> dict[str, Space]:
    """Fit every space that these cells allow; ``components`` always is among them, and first."""
    spaces = {COMPONENTS: Space(COMPONENTS, features)}
    discriminants = fit_discriminants(components_CP, codes_C)
    if discriminants.shape[1] > 1:
        spaces[DISCRIMINANTS] = Space(DISCRIMINANTS, features, discriminants)
    if embeddings_CD is not None:
        whitening = fit_whitening(embeddings_CD)
        spaces |= {name: Space(name, features, whitening=whitening) for name in (EMBEDDINGS, BOTH)}
    return spaces


def fit_discriminants(points_CP: Float32, codes_C: Int64) -> Float32:
    """Return the axes (P, L) along which labels differ most relative to their own spread; L < number of labels."""
    labels, inverse, counts = np.unique(codes_C, return_inverse=True, return_counts=True)
    num_axes = min(len(labels) - 1, points_CP.shape[1])
    if num_axes < 1:
        return np.zeros((points_CP.shape[1], 0), np.float32)
    points = points_CP.astype(np.float64)
    means = np.zeros((len(labels), points.shape[1]))
    np.add.at(means, inverse, points)
    means /= counts[:, None]
    within = np.cov((points - means[inverse]).T, bias=True).reshape(points.shape[1], -1)
    usual = max(float(np.trace(within)) / len(within), SMALLEST)
    within = (1 - SHRINKAGE) * within + SHRINKAGE * usual * np.eye(len(within))
    apart = means - np.average(means, axis=0, weights=counts)
    between = (apart * counts[:, None]).T @ apart / len(points)
    _, vectors = eigh(between, within, subset_by_index=(len(within) - num_axes, len(within) - 1))
    return np.ascontiguousarray(vectors[:, ::-1], np.float32)


def fit_whitening(embeddings_CD: Float32) -> Whitening:
    """Fit the whitening of embeddings; directions without variance are left out."""
    centre = embeddings_CD.mean(axis=0)
    centred = (embeddings_CD - centre).astype(np.float64)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    largest = max(float(variances[-1]), SMALLEST)
    kept = np.flatnonzero(variances > 1e-6 * largest)[::-1][:NUM_WHITENED]
    if not len(kept):
        kept = np.array([len(variances) - 1])
    scaled = axes[:, kept] / np.sqrt(np.maximum(variances[kept], SMALLEST))
    return Whitening(centre, scaled.astype(np.float32))


def unit(points: Float32) -> Float32:
    """Return the points divided by their lengths; a point of length 0 stays."""
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points / np.maximum(lengths, SMALLEST), np.float32)
