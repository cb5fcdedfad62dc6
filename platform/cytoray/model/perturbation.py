"""Predict expression of perturbed cells from control cells and flags of the perturbed genes."""

# B cells, G genes of the panel

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cytoray.model.transformer import ScGPT
    from cytoray.tokens.collator import Minibatch


def predict_perturbed(
    model: ScGPT,
    cells: Minibatch,
    *,
    panel: Literal["all", "expressed"] = "all",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Predict expression (B, G) after perturbation of control cells that share the same G genes in the same order.

    ``panel`` "expressed" leaves out genes that are zero in every cell of the minibatch, whose prediction is then 0
    (the original's ``include_zero_gene="batch-wise"``). With a ``generator`` and a model that predicts the probability
    of zero, zeros are sampled, as in the original. Genes that are padding are predicted as 0.
    """
    assert cells.perturbations is not None, "predicting a perturbation needs its flags"
    columns = torch.arange(cells.gene_ids.shape[1], device=cells.gene_ids.device)
    if panel == "expressed":
        columns = columns[(cells.values != 0).any(dim=0)]
    part = replace(
        cells,
        gene_ids=cells.gene_ids[:, columns],
        values=cells.values[:, columns],
        padding_mask=cells.padding_mask[:, columns],
        perturbations=cells.perturbations[:, columns],
    )
    expression = model(part).expression
    predicted_BG = expression.value if generator is None else expression.sample(generator)
    return cells.values.new_zeros(cells.values.shape).index_copy(1, columns, predicted_BG.float())
