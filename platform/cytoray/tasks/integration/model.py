"""An integration that users keep: fitted on cells of several batches, it embeds further cells of known and new batches.

model = IntegrationModel.fit(cells)
model.embedding                # of the fitted cells
model.transform(other_cells)   # known batches by the fitted correction, new ones mapped onto the fitted cells
model.save(folder); IntegrationModel.load(folder)
"""

# N fitted cells, C further cells, G genes, D features, E dimensions of the embedding

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as dump_arrays
from scipy import sparse

from cytoray import progress
from cytoray.drafts import replace_file
from cytoray.errors import CorpusError, DigestError, ModelError
from cytoray.model.bundle import ModelBundle
from cytoray.tasks.integration.cells import BatchedCells, check_batches, sample_batches
from cytoray.tasks.integration.choosing import Choice, Features, candidate_rows, choose
from cytoray.tasks.integration.correction import displaced, find_centres, map_batch, mutual_shift
from cytoray.tasks.integration.embedding import BatchedEmbedder
from cytoray.tasks.integration.features import GeneBlock
from cytoray.tasks.integration.recipe import Corrected, Recipe, correct, finish

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
FORMAT = "cytoray-integration/1"
MANIFEST, ARRAYS = "manifest.json", "arrays.safetensors"
MAX_CELLS = 20_000  # that are fitted; further ones are embedded afterwards
LEAST_GENES = 0.2  # share of the model's genes that further cells must have


@dataclass(frozen=True)
class MadeWith:
    """The transformer whose embeddings an integration uses."""

    uri: str
    weights: str  # digest of all that its embeddings depend on


@dataclass(frozen=True, eq=False)
class IntegrationModel:
    """A fitted integration: arrays, and perhaps the transformer that its recipe uses."""

    recipe: Recipe
    genes: tuple[str, ...]  # (G,) that are used
    blocks: tuple[GeneBlock, ...]  # one per view
    batch_names: tuple[str, ...]
    codes: Int64  # (N,) batches
    fitted: Corrected
    centres: Float64  # (K, D) of clusters of the corrected cells, for new batches
    why: str = ""
    candidates: tuple[dict[str, Any], ...] = ()
    made_with: MadeWith | None = None  # of a recipe that uses a transformer
    embedder: BatchedEmbedder | None = None  # that transformer, which is not saved with the model

    @property
    def embedding(self) -> Float32:
        """The embedding (N, E) of the fitted cells."""
        return self.fitted.embedding.astype(np.float32)

    @classmethod
    def fit(
        cls,
        cells: BatchedCells,
        *,
        recipe: Recipe | None = None,
        embedder: BatchedEmbedder | None = None,
        seed: int = 0,
        advance: progress.Advance = progress.silent,
    ) -> IntegrationModel:
        """Fit a recipe, by default the one that is chosen without cell types, on at most 20,000 of the cells.

        With an ``embedder`` its embeddings beside expression are a candidate too. Raises CorpusError for cells of one
        batch, and for too few cells or genes.
        """
        check_batches(cells)
        rows = sample_batches(cells.batches, MAX_CELLS, seed=seed)
        chosen = cells if len(rows) == len(cells.batches) else cells.take(rows)
        features = Features(chosen, embeddings=None if embedder is None else embedder.embed(chosen))
        if recipe is None:
            choice = choose(features, seed=seed, advance=advance)
            fitted = cls._of(features, choice.product.recipe, choice.product.corrected, choice=choice)
        else:
            fitted = cls._of(features, recipe, correct(features.of(recipe), features.codes, recipe))
        if embedder is None or "model" not in fitted.recipe.views:
            return fitted
        made_with = MadeWith(embedder.uri, embedder.weights)
        return replace(fitted, made_with=made_with, embedder=replace(embedder, maps_new=True))

    @classmethod
    def _of(
        cls, features: Features, recipe: Recipe, fitted: Corrected, *, choice: Choice | None = None
    ) -> IntegrationModel:
        blocks = features.blocks(recipe)
        used = np.unique(np.concatenate([block.genes for view, block in blocks.items() if view != "model"]))
        return cls(
            recipe=recipe,
            genes=tuple(features.cells.genes[gene] for gene in used),
            blocks=tuple(block if view == "model" else _over(block, used) for view, block in blocks.items()),
            batch_names=features.batch_names,
            codes=features.codes,
            fitted=fitted,
            centres=find_centres(fitted.corrected),
            why="" if choice is None else choice.why,
            candidates=() if choice is None else tuple(candidate_rows(choice)),
        )

    def using(self, bundle: ModelBundle, uri: str) -> IntegrationModel:
        """Return the same with the transformer that its recipe needs; without such a need, unchanged.

        Raises ModelError if it is another one.
        """
        if self.made_with is None:
            return self
        embedder = BatchedEmbedder(bundle, uri, maps_new=True)
        if embedder.weights != self.made_with.weights:
            raise ModelError(
                f"The integration was fitted with {self.made_with.uri} (weights {self.made_with.weights[:16]}), not "
                f"with {uri} ({embedder.weights[:16]}).",
                remedy="Use that model, or fit the integration again with this one.",
                expected=self.made_with.weights,
                seen=embedder.weights,
            )
        return replace(self, embedder=embedder)

    def embed_fitted(self, cells: BatchedCells, *, seed: int = 0) -> Float32:
        """Return the embedding (C, E) of the cells that were given to ``fit`` with this seed.

        If they were too many to be fitted, those left out are embedded as further cells.
        """
        rows = sample_batches(cells.batches, MAX_CELLS, seed=seed)
        found = np.empty((len(cells.batches), self.fitted.embedding.shape[1]), np.float32)
        found[rows] = self.embedding
        others = np.setdiff1d(np.arange(len(found)), rows)
        if len(others):
            found[others] = self.transform(cells.take(others.astype(np.int64)))
        return found

    def transform(self, cells: BatchedCells) -> Float32:
        """Return the embedding (C, E) of further cells; a batch that was not fitted is mapped as a whole.

        Raises CorpusError if the cells lack most genes of the model.
        """
        features = self._features(cells)
        corrected = np.empty_like(features)
        batches = np.asarray(cells.batches, str)
        for name in sorted(set(cells.batches)):
            rows = batches == name
            corrected[rows] = self._corrected(features[rows], name)
        return finish(corrected, self.fitted, self.recipe).astype(np.float32)

    def save(self, folder: str | Path) -> str:
        """Write the model into a folder, the manifest last; return its digest."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = dump_arrays({name: np.ascontiguousarray(array) for name, array in self._arrays().items()})
        digest = hashlib.sha256(arrays).hexdigest()
        manifest = {
            "format": FORMAT,
            "digest": digest,
            "recipe": self.recipe.as_dict(),
            "limits": [block.limit if np.isfinite(block.limit) else None for block in self.blocks],
            "batches": list(self.batch_names),
            "why": self.why,
            "candidates": list(self.candidates),
            "model": None if self.made_with is None else asdict(self.made_with),
            "genes": list(self.genes),
        }
        replace_file(folder / ARRAYS, arrays)
        replace_file(folder / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())
        return digest

    @classmethod
    def load(cls, folder: str | Path) -> IntegrationModel:
        """Read a saved model; raises ModelError for a folder without one, DigestError for changed bytes.

        One that uses a transformer needs it for further cells, see ``using``.
        """
        try:
            manifest, arrays = Path(folder, MANIFEST).read_bytes(), Path(folder, ARRAYS).read_bytes()
        except OSError as error:
            raise ModelError(
                f"{folder} does not hold an integration: {error}.",
                remedy="Name the folder that cytoray integrate --model-out wrote.",
            ) from error
        return cls.read(manifest, arrays, name=str(folder))

    @classmethod
    def read(cls, manifest_data: bytes, data: bytes, *, name: str) -> IntegrationModel:
        """Read a model from its two files, which messages call ``name``; raises as ``load``."""
        manifest = _parse(manifest_data, name)
        if hashlib.sha256(data).hexdigest() != manifest["digest"]:
            raise DigestError(
                f"{name}: {ARRAYS} is not the file that {MANIFEST} was written for.", remedy="Save the model again."
            )
        arrays = load_arrays(data)
        fitted = Corrected(
            uncorrected=arrays["uncorrected"].astype(np.float64),
            corrected=arrays["corrected"].astype(np.float64),
            discriminants=arrays["discriminants"].astype(np.float64) if "discriminants" in arrays else None,
            embedding=arrays["embedding"].astype(np.float64),
        )
        return cls(
            recipe=Recipe.from_dict(manifest["recipe"]),
            genes=tuple(manifest["genes"]),
            blocks=tuple(_block_of(arrays, n, limit) for n, limit in enumerate(manifest["limits"])),
            batch_names=tuple(manifest["batches"]),
            codes=arrays["codes"].astype(np.int64),
            fitted=fitted,
            centres=arrays["centres"].astype(np.float64),
            why=manifest["why"],
            candidates=tuple(manifest["candidates"]),
            made_with=None if manifest.get("model") is None else MadeWith(**manifest["model"]),
        )

    def _corrected(self, features: Float64, batch: str) -> Float64:
        """Correct the features of cells of one batch."""
        if self.recipe.theta is None:
            return features
        if batch in self.batch_names:
            own = self.codes == self.batch_names.index(batch)
            return displaced(features, self.fitted.uncorrected[own], self.fitted.corrected[own])
        mapped = map_batch(features, self.fitted.corrected, self.centres)
        for _ in range(self.recipe.alignments):
            mapped = mapped + mutual_shift(mapped, self.fitted.corrected)
        return mapped

    def _features(self, cells: BatchedCells) -> Float64:
        """Return the features (C, D) of cells over any genes; a gene that they lack counts as not expressed."""
        positions = {name: number for number, name in enumerate(cells.genes)}
        found = np.array([positions.get(name, -1) for name in self.genes], np.int64)
        shared = np.flatnonzero(found >= 0)
        if len(shared) < LEAST_GENES * len(self.genes):
            raise CorpusError(
                f"{cells.uri}: {len(shared):,} of the model's {len(self.genes):,} genes are among those of the cells.",
                remedy="Name the genes as in the cells that the model was fitted on.",
            )
        columns = sparse.csr_matrix(
            (np.ones(len(shared), np.float32), (found[shared], shared)), shape=(len(cells.genes), len(self.genes))
        )
        expression = sparse.csr_matrix(cells.expression @ columns)
        parts = [
            block.transform(self._embedded(cells) if view == "model" else expression)
            for view, block in zip(self.recipe.views, self.blocks, strict=True)
        ]
        return np.hstack(parts).astype(np.float64)

    def _embedded(self, cells: BatchedCells) -> sparse.csr_matrix:
        """Return the transformer's embeddings (C, W)."""
        if self.embedder is None:
            assert self.made_with is not None, "a recipe with a transformer"
            raise ModelError(
                f"The integration was fitted with the embeddings of {self.made_with.uri}.",
                remedy="Give this model: --model on the command line, `transformer` in Python.",
            )
        return sparse.csr_matrix(self.embedder.embed(cells))

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {"codes": self.codes, "centres": self.centres.astype(np.float32)}
        for name in ("uncorrected", "corrected", "embedding"):
            arrays[name] = getattr(self.fitted, name).astype(np.float32)
        if self.fitted.discriminants is not None:
            arrays["discriminants"] = self.fitted.discriminants.astype(np.float32)
        for number, block in enumerate(self.blocks):
            for name in ("genes", "centre", "scale", "axes"):
                arrays[f"block{number}.{name}"] = getattr(block, name)
        return arrays


def _over(block: GeneBlock, used: Int64) -> GeneBlock:
    """Return the block over the genes ``used`` only."""
    return GeneBlock(np.searchsorted(used, block.genes), block.centre, block.scale, block.axes, block.limit)


def _block_of(arrays: Mapping[str, npt.NDArray[Any]], number: int, limit: float | None) -> GeneBlock:
    genes, centre, scale, axes = (arrays[f"block{number}.{name}"] for name in ("genes", "centre", "scale", "axes"))
    return GeneBlock(genes, centre, scale, axes, np.inf if limit is None else limit)


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise ModelError(f"{name}: {MANIFEST} is not JSON: {error}.", remedy="Fit the integration again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ModelError(f"{name}: {MANIFEST} is not of the format {FORMAT}.", remedy="Fit the integration again.")
    return manifest
