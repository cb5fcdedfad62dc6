"""Something fitted that a model carries and an endpoint answers by: a reference, a protein model, an integration."""

# C cells, V genes of the vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from cytoray.errors import CorpusError, ModelError, RequestError
from cytoray.tasks.endpoint import ServedModel
from cytoray.tokens.vocabulary import GeneVocabulary

Part = TypeVar("Part")


@dataclass(frozen=True)
class Carried(Generic[Part]):
    """Something that an endpoint needs beyond the weights of a model, under the name of its attachment."""

    name: str
    lacking: str  # about a model without it: "does not predict proteins"
    load: Callable[[ServedModel], Part | None]  # None if the model carries none

    def check(self, model: ServedModel) -> None:
        """Raise RequestError if the model carries none."""
        if model.part(self.load) is None:
            raise RequestError(
                f"Model {model.info.name} version {model.info.version} {self.lacking}.",
                remedy=f"Attach one with `cytoray models attach MODEL --{self.name} FOLDER`, and serve that.",
                code="wrong_model",
            )

    def of(self, model: ServedModel) -> Part:
        """Return it, loaded once and kept; ``check`` comes first."""
        loaded = model.part(self.load)
        assert loaded is not None, "checked before"
        return loaded


@contextmanager
def genes_are_known() -> Iterator[None]:
    """Answer a CorpusError about cells whose genes do not fit with a RequestError about the request's genes."""
    try:
        yield
    except CorpusError as error:
        raise RequestError(error.problem, remedy=error.remedy, code="unknown_genes", pointer="/genes") from error


def names_in(vocabulary: GeneVocabulary, genes: Sequence[str], *, least: float, what: str) -> tuple[str, ...]:
    """Return the names (V,) of a vocabulary's genes, those among ``genes`` by the name that they have there.

    Raises ModelError if the vocabulary has less than the share ``least`` of the genes of ``what``.
    """
    ids = vocabulary.map_genes(list(genes)).ids
    known = ids >= 0
    if known.mean() < least:
        some = ", ".join(np.array(genes)[~known][:3])
        raise ModelError(
            f"The vocabulary of this model has {int(known.sum()):,} of the {len(ids):,} genes of {what}; it does not "
            f"have {some}.",
            remedy=f"Fit {what} on human cells, named by symbols or Ensembl ids, or use another model.",
        )
    names = list(vocabulary.tokens)
    for gene, token in zip(genes, ids.tolist(), strict=True):
        if token >= 0:
            names[token] = gene
    return tuple(names)
