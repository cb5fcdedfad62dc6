"""Answer `/v1/embed`: one vector per cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from cytoray.tasks.endpoint import Endpoint, Question
from cytoray.tasks.messages import CellsRequest, CellsResponse, Message
from cytoray.tasks.prediction import join_predictions, predict_together, read_embeddings, without_answer
from cytoray.tasks.spec import Lazy

if TYPE_CHECKING:
    from cytoray.model.predictor import Predictions


class EmbedRequest(CellsRequest):
    """Cells over one list of genes."""


class EmbeddedCell(Message):
    """The answer for one cell of `/v1/embed`."""

    id: str | None
    embedding: list[float] | None = Field(
        description="Of unit length; the decimals reproduce the float32 values exactly. Null for an empty cell."
    )


class EmbedResponse(CellsResponse):
    """Embeddings, in the order of the request."""

    cells: list[EmbeddedCell]


def embed(question: Question[EmbedRequest], predictions: Predictions) -> dict[str, Any]:
    """Return the embedding of each cell."""
    columns = {"embedding": predictions.embeddings.tolist()}
    return {"cells": question.rows(columns, missing=without_answer(predictions))}


ENDPOINT: Endpoint[EmbedRequest, Predictions] = Endpoint(
    name="embed",
    description="Embed cells: one vector of unit length per cell.",
    request=EmbedRequest,
    response=EmbedResponse,
    run=predict_together,
    join=join_predictions,
    answer=embed,
    read=read_embeddings,
    table=Lazy("cytoray.tasks.embedding.table", "table_of_embeddings"),
    obsm={"X_scGPT": ("embedding",)},
)
