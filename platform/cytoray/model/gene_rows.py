"""Train some rows of the gene table and freeze the others, for which no optimiser state is kept."""

# V rows of the gene table, R trained ones of them, D width

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cytoray.model.transformer import ScGPT

_TABLE = "encoder.embedding."  # prefix of the gene table in a state_dict


class PartlyTrainedEmbedding(nn.Module):
    """A table of embeddings of which some rows are a parameter, and the others another one without a gradient."""

    places: Tensor

    def __init__(self, table_VD: Tensor, trained: npt.NDArray[np.integer]) -> None:
        super().__init__()
        is_trained_V = torch.zeros(len(table_VD), dtype=torch.bool)
        is_trained_V[torch.from_numpy(np.asarray(trained, np.int64))] = True
        self.weight = nn.Parameter(table_VD[is_trained_V].clone())
        self.frozen = nn.Parameter(table_VD[~is_trained_V].clone(), requires_grad=False)
        # A trained row has its number among the trained ones, another one -1 minus that among the frozen ones.
        places_V = torch.where(is_trained_V, is_trained_V.cumsum(0) - 1, -(~is_trained_V).cumsum(0))
        self.register_buffer("places", places_V)

    def forward(self, ids_T: Tensor) -> Tensor:
        """Return the rows (T, D) of ids."""
        places_T = self.places[ids_T]
        rows_TD = F.embedding(places_T.clamp(min=0), self.weight)
        if not len(self.frozen):
            return rows_TD
        frozen_TD = F.embedding((-1 - places_T).clamp(min=0), self.frozen)
        return torch.where((places_T >= 0).unsqueeze(-1), rows_TD, frozen_TD)


def train_rows(model: ScGPT, trained: npt.NDArray[np.integer]) -> None:
    """Freeze all rows of the gene table but ``trained`` (R,), in place; ``merge_rows`` undoes it in saved weights."""
    table = model.encoder.embedding
    assert isinstance(table, nn.Embedding), "the rows of this table are divided already"
    model.encoder.embedding = PartlyTrainedEmbedding(table.weight.detach(), trained)  # type: ignore[assignment]


def merge_rows(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names of an ordinary model; itself unless the rows of its gene table are divided."""
    if f"{_TABLE}places" not in weights:
        return weights
    merged = dict(weights)
    places_V, frozen = merged.pop(f"{_TABLE}places"), merged.pop(f"{_TABLE}frozen")
    trained = merged[f"{_TABLE}weight"]
    table_VD = trained.new_empty(len(places_V), trained.shape[1])
    table_VD[places_V >= 0] = trained
    table_VD[places_V < 0] = frozen
    return merged | {f"{_TABLE}weight": table_VD}
