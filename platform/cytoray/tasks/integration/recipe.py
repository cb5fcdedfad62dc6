"""A way to integrate: which features of cells, and which corrections in which order."""

# C cells, D features, E dimensions of the embedding

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.harmony import HarmonyOptions, harmonise
from cytoray.tasks.integration.correction import align_batches, cluster_discriminants, smooth_cells, smooth_onto

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
View = Literal["expression", "scaled", "model"]
MORE_COMPONENTS = 50


@dataclass(frozen=True)
class Recipe:
    """A way to integrate; by default Harmony on 20 principal components of log-normalised expression."""

    name: str
    views: tuple[View, ...] = ("expression",)
    num_components: int = 20  # of each view
    theta: float | None = 2.0  # of Harmony; None: no correction at all
    alignments: int = 0  # rounds of mutual nearest neighbours
    sharpened: bool = False  # whether discriminants of clusters are appended
    smoothing: float = 0.0  # share of each cell that its neighbours replace

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, from which ``from_dict`` makes the recipe again."""
        return asdict(self) | {"views": list(self.views)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Make the recipe that ``as_dict`` described."""
        return cls(**{**values, "views": tuple(values["views"])})


@dataclass(frozen=True, eq=False)
class Corrected:
    """Cells in the stages of a recipe, by which further cells follow them."""

    uncorrected: Float64  # (C, D)
    corrected: Float64  # (C, D) by Harmony and alignment
    discriminants: Float64 | None  # (D, S), appended after correction
    embedding: Float64  # (C, E)


def floor() -> Recipe:
    """Return the recipe without any correction."""
    return Recipe("none", num_components=MORE_COMPONENTS, theta=None)


def simple_recipes() -> list[Recipe]:
    """Return the simple method in the settings that it is tuned over: Harmony on principal components."""
    return [
        Recipe(f"harmony, theta {theta:g}, {num} components", num_components=num, theta=theta)
        for num in (20, MORE_COMPONENTS)
        for theta in (1.0, 2.0, 4.0)
    ]


def product_recipes(*, has_model: bool = False) -> list[Recipe]:
    """Return the candidates beside the simple method."""
    aligned = Recipe("aligned", alignments=2, smoothing=0.5)
    both: tuple[View, ...] = ("expression", "scaled")
    found = [
        aligned,
        replace(aligned, name="two views", views=both),
        replace(aligned, name="two views, sharpened", views=both, sharpened=True),
    ]
    if has_model:
        found.append(replace(aligned, name="with transformer", views=("expression", "model")))
    return found


def correct(features: Float64, codes: Int64, recipe: Recipe, *, harmonised: Float64 | None = None) -> Corrected:
    """Integrate features (C, D) by a recipe; ``harmonised`` is the result of ``harmonise_features`` if it is known."""
    corrected = features if recipe.theta is None else harmonised
    if corrected is None:
        corrected = harmonise_features(features, codes, recipe)
    if recipe.alignments:
        corrected = align_batches(corrected, codes, rounds=recipe.alignments)
    axes = scaled_discriminants(corrected) if recipe.sharpened else None
    embedding = sharpen(corrected, axes)
    if recipe.smoothing:
        embedding = smooth_cells(embedding, share=recipe.smoothing)
    return Corrected(features, corrected, axes, embedding)


def harmonise_features(features: Float64, codes: Int64, recipe: Recipe) -> Float64:
    """Return features (C, D) after Harmony."""
    assert recipe.theta is not None, "a recipe without Harmony"
    return harmonise(features, batches=[str(code) for code in codes], options=HarmonyOptions(theta=recipe.theta))


def finish(corrected: Float64, fitted: Corrected, recipe: Recipe) -> Float64:
    """Return the embedding (A, E) of further cells after correction, beside the fitted ones."""
    embedding = sharpen(corrected, fitted.discriminants)
    if recipe.smoothing:
        reference = sharpen(fitted.corrected, fitted.discriminants)
        embedding = smooth_onto(embedding, reference, share=recipe.smoothing)
    return embedding


def scaled_discriminants(points: Float64) -> Float64 | None:
    """Return discriminants (D, S) whose cells have the mean square norm of the points; None for a single cluster."""
    axes = cluster_discriminants(points)
    projected = points @ axes
    size = float((projected**2).sum())
    return axes * np.sqrt(float((points**2).sum()) / size) if size > 0 else None


def sharpen(points: Float64, axes: Float64 | None) -> Float64:
    """Append the discriminants of cells (C, D) to them."""
    return points if axes is None else np.hstack([points, points @ axes])
