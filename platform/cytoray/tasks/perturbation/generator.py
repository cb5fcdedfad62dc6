"""Predict the mean change of control cells under perturbations with a fine-tuned generator; no training imports.

deltas = predict_deltas(bundle, controls, genes, ["STAT1"])
generator = find_generator(bundle, uri)  # as a member beside other methods
generator.trained_on, generator.effects(generator.prepare(controls, genes, seed=0), genes, ["STAT1"])
"""

# C control cells, G genes asked for, L tokens of the panel, P perturbations

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from cytoray.errors import ModelError, RequestError
from cytoray.model.bundle import ModelBundle, compute_weights_digest
from cytoray.model.perturbation import predict_perturbed
from cytoray.tasks.perturbation.members import GeneratorUse
from cytoray.tokens.collator import Minibatch
from cytoray.tokens.features import feature_token
from cytoray.tokens.perturbations import parse_perturbation

CONDITION = "perturbation"  # tokens of drugs and the like are perturbation:NAME
POOL_SIZE = 300  # control cells that a prediction is averaged over, as in the original's plots
CELLS_PER_PASS = 32
EARLIER_TARGETS = "initial_perturbations"  # in the lineage, as JSON
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def predict_deltas(
    bundle: ModelBundle,
    controls: sparse.csr_matrix | npt.NDArray[Any],
    genes: Sequence[str],
    targets: Sequence[str],
    *,
    pool_size: int = POOL_SIZE,
    seed: int = 0,
) -> Float32:
    """Return the mean predicted change (P, G) of each target, such as ``STAT1`` or ``STAT1+IRF1``, over control cells.

    ``controls`` (C, G) is log(1 + counts per 10,000) over ``genes``; of more than ``pool_size`` cells a sample is
    used, the same for all targets. Genes that the model does not predict have a change of 0. Raises ModelError if
    ``bundle`` is not a generator, RequestError for targets that it does not know.
    """
    conditions = bundle.conditions
    if conditions is None or conditions.panel is None or not _is_generator(bundle):
        raise ModelError(
            "This model does not predict perturbed cells.", remedy="Use one of `cytoray finetune-perturbation`."
        )
    hit = [_tokens_hit(bundle, target) for target in targets]
    _refuse_unknown(targets, hit)
    panel = list(dict.fromkeys((*conditions.panel, *(token for tokens in hit for token in tokens))))
    values_CL = _over_panel(bundle, panel, sparse.csr_matrix(controls), genes)
    if len(values_CL) > pool_size:
        values_CL = values_CL[np.sort(np.random.default_rng(seed).permutation(len(values_CL))[:pool_size])]
    found = np.zeros((len(targets), len(genes)), np.float32)
    places = {gene: place for place, gene in enumerate(panel)}
    base = len(conditions.panel)
    for row, tokens in enumerate(hit):
        own = [*range(base), *(places[token] for token in tokens if places[token] >= base)]
        flags = np.isin(own, [places[token] for token in tokens])
        means = _mean_prediction(bundle, [panel[place] for place in own], values_CL[:, own], flags)
        changes = dict(zip(conditions.panel, means[:base] - values_CL[:, :base].mean(axis=0), strict=True))
        found[row] = [changes.get(name, 0.0) for name in _names(bundle, genes)]
    return found


@dataclass(frozen=True, eq=False)
class Generator:
    """A generator of perturbed cells that predicts effects of targets over the genes of a screen."""

    bundle: ModelBundle
    uri: str

    @cached_property
    def weights(self) -> str:
        """Digest of everything that predictions depend on."""
        return compute_weights_digest(self.bundle)

    @cached_property
    def trained_on(self) -> frozenset[str]:
        """Genes and conditions whose cells the generator, or one that it was made of, was trained or selected by."""
        assert self.bundle.conditions is not None
        names = [name for values in self.bundle.conditions.columns.values() for name in values]
        names += json.loads(self.bundle.lineage.get(EARLIER_TARGETS, "[]"))
        parsed = [parse_perturbation(name, vocabulary=self.bundle.vocabulary, control="") for name in names]
        return frozenset(part.upper() for each in parsed for part in (*each.genes, *each.others))

    def prepare(self, controls: sparse.csr_matrix, genes: Sequence[str], *, seed: int) -> GeneratorUse:
        """Choose the control cells, of (C, G) log-normalised expression, that effects are predicted from."""
        assert self.bundle.conditions is not None
        panel = frozenset(self.bundle.conditions.panel or ())
        columns = np.flatnonzero([name in panel for name in _names(self.bundle, genes)])
        rows = np.sort(np.random.default_rng(seed).permutation(controls.shape[0])[:POOL_SIZE])
        return GeneratorUse(self.uri, self.weights, controls[rows][:, columns].toarray().astype(np.float32), columns)

    def effects(self, use: GeneratorUse, genes: Sequence[str], targets: Sequence[str]) -> dict[str, Float64]:
        """Return the effect (G,) of each target that the generator knows; NaN for genes that it does not predict."""
        known = [target for target in targets if _tokens_hit(self.bundle, target)]
        if not known or not len(use.columns):
            return {}
        deltas = predict_deltas(self.bundle, use.controls, [genes[column] for column in use.columns], known)
        found = {}
        for target, delta in zip(known, deltas, strict=True):
            found[target] = np.full(len(genes), np.nan)
            found[target][use.columns] = delta
        return found


def find_generator(bundle: ModelBundle, uri: str) -> Generator | None:
    """Return the generator that a bundle is; None for any other model."""
    return Generator(bundle, uri) if _is_generator(bundle) else None


def keep_earlier_targets(bundle: ModelBundle, *, initial: Sequence[str]) -> ModelBundle:
    """Note the perturbations that the model which a generator was made of was trained on in its lineage."""
    return replace(bundle, lineage=bundle.lineage | {EARLIER_TARGETS: json.dumps(sorted(initial))})


def _is_generator(bundle: ModelBundle) -> bool:
    conditions = bundle.conditions
    return conditions is not None and conditions.task == "perturbation" and conditions.panel is not None


def _tokens_hit(bundle: ModelBundle, target: str) -> tuple[str, ...]:
    """Return the tokens of the genes and conditions of a perturbation; none if one of them is unknown."""
    parsed = parse_perturbation(target, vocabulary=bundle.vocabulary, control="")
    tokens = (*parsed.genes, *(feature_token(CONDITION, other) for other in parsed.others))
    return tokens if all(token in bundle.vocabulary for token in tokens) else ()


def _refuse_unknown(targets: Sequence[str], hit: Sequence[tuple[str, ...]]) -> None:
    """Raise RequestError that lists the targets without a token."""
    unknown = [target for target, tokens in zip(targets, hit, strict=True) if not tokens]
    if unknown:
        raise RequestError(
            f"The model does not know {', '.join(unknown[:20])}{', …' if len(unknown) > 20 else ''}.",
            remedy="Name perturbations by human genes (A, or A+B), or by conditions that the model was trained on.",
            code="unknown_perturbations",
        )


def _names(bundle: ModelBundle, genes: Sequence[str]) -> list[str]:
    """Return the token of each gene; an empty text for genes that the model does not know."""
    ids = bundle.vocabulary.map_genes(list(genes)).ids
    return [bundle.vocabulary.tokens[gene] if gene >= 0 else "" for gene in ids.tolist()]


def _over_panel(
    bundle: ModelBundle, panel: Sequence[str], controls: sparse.csr_matrix, genes: Sequence[str]
) -> Float32:
    """Return the controls' values (C, L) over the tokens of a panel; 0 for those that were not measured."""
    columns = {name: column for column, name in enumerate(_names(bundle, genes)) if name}
    values = np.zeros((controls.shape[0], len(panel)), np.float32)
    there = [place for place, gene in enumerate(panel) if gene in columns]
    values[:, there] = controls[:, [columns[panel[place]] for place in there]].toarray()
    return values


@torch.no_grad()
def _mean_prediction(
    bundle: ModelBundle, panel: Sequence[str], values_CL: Float32, flags: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return the mean predicted expression (L,) of the control cells ``values_CL`` under one perturbation."""
    model = bundle.model.eval()
    ids = torch.tensor([bundle.vocabulary.index[gene] for gene in panel], device=model.device)
    hit = torch.from_numpy(flags.astype(np.int64)).to(model.device)
    total = np.zeros(len(panel))
    for start in range(0, len(values_CL), CELLS_PER_PASS):
        part = torch.from_numpy(values_CL[start : start + CELLS_PER_PASS]).to(model.device)
        shape = part.shape
        cells = Minibatch(
            ids.expand(shape),
            part,
            torch.zeros(shape, dtype=torch.bool, device=model.device),
            np.arange(shape[0], dtype=np.uint64),
            perturbations=hit.expand(shape),
        )
        total += predict_perturbed(model, cells).double().sum(dim=0).cpu().numpy()
    return total / len(values_CL)
