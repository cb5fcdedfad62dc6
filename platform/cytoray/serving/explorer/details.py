"""What the page asks about one cell or one gene of a session."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydantic_core

from cytoray.errors import RequestError
from cytoray.serving.explorer.answering import EMBEDDED, Asker, cell_endpoints, question_about
from cytoray.serving.explorer.cells import Float32, StoredCells
from cytoray.serving.explorer.columns import read_value
from cytoray.serving.explorer.downloads import OWN_GROUPS
from cytoray.serving.explorer.sessions import Session

TOP_GENES = 15


async def describe_cell(service: Asker, session: Session, cells: StoredCells, row: int) -> dict[str, Any]:
    """Return the answers to one cell of every endpoint about cells, its strongest genes and its values in the file.

    The answers are asked for now, by the requests that any client sends; an endpoint that refuses says why.
    """
    if not 0 <= row < cells.num_cells:
        raise RequestError(
            f"Cell {row:,} does not exist; the session has {cells.num_cells:,}.", remedy="", code="not_found"
        )
    tokens = service.served.bundle.vocabulary.tokens
    answers: dict[str, Any] = {}
    for endpoint in cell_endpoints(service.served):
        if endpoint.name == EMBEDDED:  # numbers that say nothing to a reader
            continue
        question = question_about(endpoint, cells, row, row + 1)
        try:
            found = endpoint.answer(question, await service.ask(endpoint, question))
        except RequestError as error:
            answers[endpoint.name] = {"trouble": {"detail": error.problem, "remedy": error.remedy}}
            continue
        answer = pydantic_core.to_jsonable_python(found)
        answers[endpoint.name] = {"cell": answer["cells"][0], "header": answer.get("header")}
    return {
        "row": row,
        "name": cells.names[row],
        "answers": answers,
        "top_genes": [{"gene": tokens[gene], "expression": value} for gene, value in cells.top_genes(row, TOP_GENES)],
        "columns": [
            {"group": column.group, "name": column.name, "value": read_value(session, column, row)}
            for column in session.state.columns
            if column.group in OWN_GROUPS
        ],
    }


def gene_expression(service: Asker, cells: StoredCells, gene: str) -> tuple[str, Float32]:
    """Return the name of a gene in the model's vocabulary and its expression (C,); RequestError if it was not measured.

    Older symbols and Ensembl ids are found as well.
    """
    vocabulary = service.served.bundle.vocabulary
    token = vocabulary.index.get(gene, -1)
    if token < 0:
        token = int(vocabulary.map_genes([gene], sum_older=True).ids[0])
    place = int(np.searchsorted(cells.genes, token))
    if token < 0 or place == len(cells.genes) or cells.genes[place] != token:
        why = "is not a gene that the model knows" if token < 0 else "was not measured in this file"
        raise RequestError(
            f"{gene} {why}.",
            remedy="Choose one of the listed genes, or another name of it.",
            code="unknown_genes",
            pointer="/gene",
        )
    return vocabulary.tokens[token], cells.expression(token)


def measured_genes(service: Asker, cells: StoredCells) -> list[str]:
    """Return the names of the genes that the file measured and the model knows."""
    tokens = service.served.bundle.vocabulary.tokens
    return [tokens[gene] for gene in cells.genes.tolist()]
