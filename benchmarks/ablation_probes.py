"""Probes of a pretrained model, higher is better: annotation, integration, proteins, and effects of perturbations."""

# C cells, D dimensions of an embedding, G genes, P proteins, T perturbed targets

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler

from cytoray.api.finetuning import scGPTFineTuningModel
from cytoray.api.model import scGPT
from cytoray.evaluation.integration import score_integration
from cytoray.evaluation.splits import few_labels
from cytoray.model.bundle import ModelBundle

Float = npt.NDArray[np.floating]
SHARES = {"annotation_2": 0.02, "annotation_10": 0.1}
PROBES = (*SHARES, "finetuned_2", "finetuned_10", "integration", "proteins", "perturbation")
NUM_DRAWS = 5  # of labelled cells
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)  # of the kernel of genes


@dataclass(frozen=True)
class Data:
    """The files of the probes, of which at most ``max_cells`` cells are used."""

    folder: Path
    max_cells: int

    @functools.cached_property
    def cite(self) -> anndata.AnnData:
        """Cells with types and proteins."""
        adata = self._read("pbmc10k_cite", self.max_cells)
        return adata[~adata.obs["cell_type"].astype(str).isin(["unassigned", "nan"])].copy()

    @functools.cached_property
    def batches(self) -> anndata.AnnData:
        """Cells of two batches with their types."""
        return self._read("pbmc_integration_visible", self.max_cells)

    @functools.cached_property
    def screen(self) -> anndata.AnnData:
        """Perturbed cells, all of them."""
        return self._read("papalexi_visible", None)

    def _read(self, name: str, max_cells: int | None) -> anndata.AnnData:
        adata = anndata.read_h5ad(self.folder / f"{name}.h5ad")
        if max_cells is None or adata.n_obs <= max_cells:
            return adata
        chosen = np.random.default_rng(0).choice(adata.n_obs, max_cells, replace=False)
        return adata[np.sort(chosen)].copy()


def probe(bundle: ModelBundle, data: Data, *, seed: int, epochs: int) -> dict[str, float]:
    """Return all figures of a model; those of fine-tuned ones only with ``epochs``."""
    model = scGPT.from_bundle(bundle)
    cells, labels = _embed(model, data.cite), data.cite.obs["cell_type"].astype(str).to_numpy()
    figures = {name: _annotate(cells, labels, share) for name, share in SHARES.items()}
    if epochs:
        for name, share in (("finetuned_2", 0.02), ("finetuned_10", 0.1)):
            figures[name] = _fine_tune(bundle, data.cite, labels, share=share, seed=seed, epochs=epochs)
    batches = data.batches.obs
    scores = score_integration(
        _embed(model, data.batches),
        batches=batches["batch"].astype(str).tolist(),
        labels=batches["cell_type"].astype(str).tolist(),
        before=_components(data.batches),
    )
    figures["integration"] = float("nan") if scores.total is None else scores.total
    figures["proteins"] = _predict_proteins(cells, np.asarray(data.cite.obsm["protein_counts"], float))
    figures["perturbation"] = _predict_effects(model, data.screen)
    return figures


def _embed(model: scGPT, adata: anndata.AnnData) -> Float:
    """Return standardised embeddings (C, D)."""
    found: Float = np.nan_to_num(model.get_embeddings(model.process_data(adata)))
    return StandardScaler().fit_transform(found)


def _components(adata: anndata.AnnData) -> Float:
    """Return principal components of log-normalised expression, (C, 30)."""
    logs = _logs(adata)
    centred = logs - logs.mean(axis=0)
    left, sizes, _ = sparse.linalg.svds(centred, k=30, random_state=0)
    return left * sizes


def _logs(adata: anndata.AnnData) -> Float:
    """Return log(1 + counts per 10,000), (C, G)."""
    counts = np.asarray(adata.X.todense(), np.float64)
    return np.log1p(counts * (1e4 / np.maximum(counts.sum(axis=1, keepdims=True), 1)))


def _annotate(cells: Float, labels: npt.NDArray[np.str_], share: float) -> float:
    """Return the mean macro-F1 of logistic regression learned from a share of the labels."""
    found = []
    for draw in range(NUM_DRAWS):
        split = few_labels(labels.tolist(), fraction=share, seed=draw)
        shown, rest = split.train, split.test
        learned = LogisticRegression(C=0.1, max_iter=500).fit(cells[shown], labels[shown])
        found.append(f1_score(labels[rest], learned.predict(cells[rest]), average="macro", zero_division=0))
    return float(np.mean(found))


def _fine_tune(
    bundle: ModelBundle, adata: anndata.AnnData, labels: npt.NDArray[np.str_], *, share: float, seed: int, epochs: int
) -> float:
    """Return the macro-F1 of the model fine-tuned on a share of the labels."""
    split = few_labels(labels.tolist(), fraction=share, seed=seed)
    shown, rest = split.train, split.test
    model = scGPTFineTuningModel.from_bundle(bundle, output_size=len(set(labels.tolist())))
    model.train(
        model.process_data(adata[shown].copy()), labels[shown].tolist(), validation_fraction=0.0, epochs=epochs,
        learning_rate=1e-3, batch_size=16, seed=seed,
    )  # fmt: skip
    answers = model.predict(model.process_data(adata[rest].copy()))
    return float(f1_score(labels[rest], np.asarray(answers), average="macro", zero_division=0))


def _predict_proteins(cells: Float, counts: Float) -> float:
    """Return the mean correlation of ridge regression over proteins, learned from half of the cells."""
    logs = np.log1p(counts)
    targets = logs - logs.mean(axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(cells))
    shown, rest = np.split(order, [len(order) // 2])
    predicted = RidgeCV(alphas=np.logspace(0, 4, 9)).fit(cells[shown], targets[shown]).predict(cells[rest])
    pairs = zip(predicted.T, targets[rest].T, strict=True)
    return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))


def _predict_effects(model: scGPT, adata: anndata.AnnData) -> float:
    """Return the mean correlation of effects predicted for targets left out, from those of genes with close embeddings.

    The strength of the kernel is the best one on the other targets, each of which is left out in turn.
    """
    names, logs = adata.obs["perturbation"].astype(str).to_numpy(), _logs(adata)
    table = model.get_gene_embeddings()
    targets = [name for name in sorted(set(names)) if name in table.index]
    control = logs[names == "control"].mean(axis=0)
    effects_TG = np.stack([logs[names == name].mean(axis=0) - control for name in targets])
    genes_TD = table.loc[targets].to_numpy(np.float64) - table.to_numpy(np.float64).mean(axis=0)
    genes_TD /= np.maximum(np.linalg.norm(genes_TD, axis=1, keepdims=True), 1e-12)
    cosines_TT = genes_TD @ genes_TD.T
    found, everyone = [], np.arange(len(targets))
    for left in everyone:
        others = everyone[everyone != left]
        inner = [_leave_out(cosines_TT, effects_TG, others, strength) for strength in STRENGTHS]
        best = STRENGTHS[int(np.argmax(inner))]
        found.append(_effect_score(cosines_TT, effects_TG, left, others, best))
    return float(np.mean(found))


def _leave_out(cosines_TT: Float, effects_TG: Float, targets: npt.NDArray[np.int64], strength: float) -> float:
    """Return the mean correlation over ``targets``, each left out of them in turn."""
    return float(
        np.mean([_effect_score(cosines_TT, effects_TG, left, targets[targets != left], strength) for left in targets])
    )


def _effect_score(
    cosines_TT: Float, effects_TG: Float, left: int, others: npt.NDArray[np.int64], strength: float
) -> float:
    """Return the correlation of a target's effect with the mean of others, weighted by their cosines with it."""
    weights = np.exp(strength * cosines_TT[left, others])
    return float(np.corrcoef(weights @ effects_TG[others] / weights.sum(), effects_TG[left])[0, 1])
