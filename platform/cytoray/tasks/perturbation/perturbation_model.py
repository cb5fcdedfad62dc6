"""A model that predicts what perturbations do: fitted on a screen, kept as a folder, used on control cells.

model = PerturbationModel.fit("screen.h5ad", batch_key="batch")
predicted = model.predict(["IRF9", "STAT1+IRF1"])
predicted.deltas, predicted.confidence, predicted.reasons
cells = model.predict_cells(["IRF9"], "controls.h5ad")  # an AnnData
model.save("perturbations")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.drafts import draft_of, replace_file
from cytoray.errors import ConflictError, CorpusError, CytorayError, ModelError
from cytoray.evaluation.perturbation.covariates import measure_points
from cytoray.evaluation.perturbation.effects import measure_effects
from cytoray.registry.opening import OpenedModel, open_model
from cytoray.tasks.multiomic.paired import RnaCells
from cytoray.tasks.multiomic.reading import read_rna_of
from cytoray.tasks.perturbation.covariates import point_text
from cytoray.tasks.perturbation.fitting import LEVEL, fit_targets
from cytoray.tasks.perturbation.knowledge import build_members, control_means, lasting_uri
from cytoray.tasks.perturbation.members import GeneratorUse
from cytoray.tasks.perturbation.model_files import load_model, save_model
from cytoray.tasks.perturbation.predicting import PerturbationPrediction, PerturbationPredictor
from cytoray.tasks.perturbation.reading import read_screen, rna_of
from cytoray.tasks.perturbation.screen import Columns, Screen
from cytoray.tokens.labels import label_texts

if TYPE_CHECKING:
    from cytoray.tasks.perturbation.generator import Generator

At = Mapping[str, float] | Sequence[Mapping[str, float]]
NUM_CELLS = 200  # made for each perturbation
FEWEST_PERTURBATIONS = 2


@dataclass(frozen=True, eq=False)
class PerturbationModel(PerturbationPredictor):
    """A model of a screen that is fitted, kept and used on files and AnnData."""

    @classmethod
    def fit(
        cls,
        cells: Any,
        *,
        perturbation_key: str = "perturbation",
        control: str = "control",
        batch_key: str | None = None,
        gene_sets: Sequence[str] = (),
        screens: Sequence[str] = (),
        model: str | OpenedModel | None = None,
        covariates: Sequence[str] = (),
        seed: int = 0,
    ) -> PerturbationModel:
        """Fit on a screen: a file of cells or an AnnData with a column of perturbations, or a table of guide counts.

        ``gene_sets`` are .gmt files beside the packaged ones, ``screens`` files of other screens with the same columns.
        ``model`` is any model URI, or an opened model: its vectors of genes are a view, and the effects that a
        generator (``cytoray finetune-perturbation``) predicts are a candidate, judged by targets that are new to it.
        ``covariates`` are columns of numbers, such as dose and time, between whose measured values effects are
        interpolated.
        Raises CorpusError for data that cannot be used, ConfigError for a file that has no gene sets.
        """
        columns = Columns(perturbation_key, control, batch_key, covariates=tuple(covariates))
        opened = open_model(model) if isinstance(model, str) else model
        screen = read_screen(cells, columns)
        return fit_model(screen, columns, gene_sets=gene_sets, screens=screens, model=opened, seed=seed)

    def predict(self, perturbations: str | Sequence[str], *, at: At = ()) -> PerturbationPrediction:
        """Predict the effect of perturbations: ``STAT1``, ``STAT1+IRF1``, or a condition of the screen.

        A text may list several, separated by commas. ``at`` is a point such as ``{"dose": 0.5}``, or several: all
        perturbations at the first, then at the next. Raises RequestError for an unknown name or covariate.
        """
        names = perturbations.split(",") if isinstance(perturbations, str) else perturbations
        return self.predict_names([name.strip() for name in names], [at] if isinstance(at, Mapping) else at)

    def predict_cells(
        self,
        perturbations: str | Sequence[str],
        controls: Any,
        *,
        at: At = (),
        num_cells: int = NUM_CELLS,
        seed: int = 0,
    ) -> anndata.AnnData:
        """Predict cells: control cells changed by the predicted effects, with these in ``varm`` and ``uns``.

        ``controls`` is a file or an AnnData; if it has the screen's perturbation column, only its control cells count.
        ``obs`` has the covariates of ``at``.
        """
        return self.cells_of(self.predict(perturbations, at=at), controls, num_cells=num_cells, seed=seed)

    def cells_of(
        self, predicted: PerturbationPrediction, controls: Any, *, num_cells: int = NUM_CELLS, seed: int = 0
    ) -> anndata.AnnData:
        """Make the cells of predicted effects; see ``predict_cells``."""
        cells = self._controls(controls)
        made, warnings = self.make_cells(predicted, cells, num_cells=num_cells, seed=seed)
        obs = pd.DataFrame(
            {
                "perturbation": pd.Categorical(np.repeat(predicted.names, num_cells)),
                "confidence": np.repeat(predicted.confidence, num_cells),
            },
            index=[f"{name}-{number}" for name in _distinct(predicted) for number in range(num_cells)],
        )
        for name in self.covariates if predicted.covariates else ():
            obs[name] = np.repeat([point[name] for point in predicted.covariates], num_cells)
        matrix = sparse.csr_matrix(sparse.vstack(made), dtype=np.float32)
        adata = anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=list(cells.genes)))
        place = {gene.upper(): column for column, gene in reversed(list(enumerate(predicted.genes)))}
        columns = np.array([place.get(gene.upper(), -1) for gene in cells.genes])
        for key, values in (("delta", predicted.deltas), ("half_width", predicted.half_width)):
            adata.varm[key] = np.where(columns >= 0, values[:, columns], np.nan).T.astype(np.float32)
        adata.uns["perturbation_prediction"] = {
            "names": np.array(predicted.names, dtype=object),
            "confidence": predicted.confidence,
            "level": LEVEL,
            "warnings": np.array([*predicted.warnings, *warnings], dtype=object),
        }
        return adata

    def save(self, folder: str | Path) -> str:
        """Write the model as a folder, which appears only when complete, and return its digest."""
        return save_model(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, *, generator: str | OpenedModel | None = None) -> PerturbationModel:
        """Load a model after verifying its digests; nothing in it can run code.

        ``generator`` is any URI of the generator that the model predicts with, if it was moved.
        """
        return cls.of(load_model(Path(folder)).with_generator(lambda use: _open_generator(use, generator)))

    @classmethod
    def of(cls, found: PerturbationPredictor) -> PerturbationModel:
        """Return a predictor as a model."""
        return cls(**vars(found))

    def _controls(self, cells: Any) -> RnaCells:
        """The control cells of a file or an AnnData; all of its cells without the screen's column."""
        if isinstance(cells, str | Path):
            with open_source(SourceConfig(uri=str(cells))) as reader:
                rna = read_rna_of(reader)
                has_column = self.perturbation_key in reader.obs
                values = reader.labels(self.perturbation_key) if has_column else None
        else:
            rna = rna_of(cells)
            values = label_texts(cells.obs[self.perturbation_key]) if self.perturbation_key in cells.obs else None
        if values is None:
            return rna
        rows = np.flatnonzero([value == self.control for value in values])
        if not len(rows):
            raise CorpusError(
                f"No cell has {self.control!r} in {self.perturbation_key!r}.",
                remedy="Give control cells, or remove that column: all cells are then controls.",
            )
        return RnaCells(rna.rna.take(rows), rna.genes, tuple(rna.names[row] for row in rows))


def fit_model(
    screen: Screen,
    columns: Columns,
    *,
    gene_sets: Sequence[str] = (),
    screens: Sequence[str] = (),
    model: OpenedModel | None = None,
    seed: int = 0,
) -> PerturbationModel:
    """Fit a model on a screen; see ``PerturbationModel.fit``."""
    from cytoray.tasks.perturbation.generator import find_generator

    if len(screen.names) < FEWEST_PERTURBATIONS:
        raise CorpusError(
            f"{screen.uri}: one perturbation ({screen.names[0]}); others are predicted from at least "
            f"{FEWEST_PERTURBATIONS}.",
            remedy="Name a column with several perturbations.",
        )
    members, warnings = build_members(
        screen, gene_sets=gene_sets, model=model, others=screens, columns=columns, seed=seed
    )
    fitted = fit_targets(
        measure_effects(screen.cells), screen.parts, members, symbols=screen.symbols, means=control_means(screen)
    )
    used = {name: view.restricted(screen.targets) for name, view in members.views.items()}
    facts = {
        "num_cells": screen.num_cells,
        "num_perturbations": len(screen.names),
        "digest_of_data": screen.digest,
        "chosen": fitted.model.method,
        "why": fitted.why,
        "errors": fitted.choice.errors,
        "seed": seed,
        "warnings": [*screen.warnings, *warnings],
        **screen.facts,
    }
    return PerturbationModel(
        screen.genes,
        replace(fitted.model, views=used),
        columns.control,
        columns.perturbation,
        facts,
        None if model is None or fitted.model.blend is None else find_generator(model.bundle, lasting_uri(model)),
        screen.covariates,
        None if screen.values is None else measure_points(screen.cells, screen.values),
    )


def _open_generator(use: GeneratorUse, place: str | OpenedModel | None) -> Generator:
    """Open the generator that a model predicts with, from where it was unless ``place`` is given."""
    from cytoray.tasks.perturbation.generator import find_generator

    try:
        opened = open_model(place or use.uri) if not isinstance(place, OpenedModel) else place
    except CytorayError as error:
        raise ModelError(
            f"The generator that this model predicts with cannot be opened: {error.problem}",
            remedy="Name its place with --generator, or generator= in Python.",
        ) from error
    found = find_generator(opened.bundle, opened.uri)
    if found is None:
        raise ModelError(f"{opened.uri} is not a generator.", remedy=f"This model was fitted with {use.uri}.")
    return found


def _distinct(predicted: PerturbationPrediction) -> list[str]:
    """Names of the predictions, with their covariates."""
    if not predicted.covariates:
        return list(predicted.names)
    pairs = zip(predicted.names, predicted.covariates, strict=True)
    return [f"{name} ({point_text(tuple(point), tuple(point.values()))})" for name, point in pairs]


def write_prediction(
    model: PerturbationModel,
    names: str,
    controls: str,
    out: Path,
    *,
    at: At = (),
    num_cells: int = NUM_CELLS,
    seed: int = 0,
) -> tuple[PerturbationPrediction, list[str]]:
    """Write predicted cells as ``out`` (h5ad), and beside it the effects as JSON; return the prediction and the files.

    Raises ConflictError if a file exists.
    """
    listing = out.with_suffix(".json")
    for path in (out, listing):
        if path.exists():
            raise ConflictError(f"{path} already exists.", remedy="Choose another file.")
    predicted = model.predict(names, at=at)
    adata = model.cells_of(predicted, controls, num_cells=num_cells, seed=seed)
    text = json.dumps(predicted.as_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    with draft_of(out) as draft:
        adata.write_h5ad(draft)
        replace_file(listing, text.encode())
    return predicted, [str(out), str(listing)]
