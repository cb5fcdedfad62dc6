"""Gene vocabularies: scGPT's vocabulary file, special tokens, and ids of gene names."""

# G genes of a data set

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from cytoray.errors import ModelError
from cytoray.tokens.gene_table import read_lines
from cytoray.tokens.mapping import GeneMapping, NameResolver

__all__ = ["SPECIAL_TOKENS", "GeneMapping", "GeneVocabulary"]

SPECIAL_TOKENS = ("<pad>", "<cls>", "<eoc>")  # <eoc> is used only by models with a token for depth


class GeneVocabulary:
    """Tokens and their ids 0 .. size - 1; missing special tokens are appended at the end."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """Number ``tokens`` in their order; raises ModelError if one occurs twice."""
        self.tokens = (*tokens, *(token for token in SPECIAL_TOKENS if token not in set(tokens)))
        self.index = {token: number for number, token in enumerate(self.tokens)}
        if len(self.index) < len(self.tokens):
            twice = next(token for number, token in enumerate(self.tokens) if self.index[token] != number)
            raise ModelError(
                f"The vocabulary lists {twice!r} more than once.", remedy="Give each token one id.", token=twice
            )

    @staticmethod
    @functools.cache
    def load_default() -> GeneVocabulary:
        """Load the public scGPT vocabulary shipped with cytoray: 60,694 census genes and the special tokens."""
        return GeneVocabulary(read_lines("census_vocabulary.txt.gz"))

    @staticmethod
    def from_json(text: bytes | str) -> GeneVocabulary:
        """Read scGPT's ``vocab.json``, a flat object from token to id; raises ModelError for anything else."""
        try:
            ids = json.loads(text)
        except ValueError as error:
            raise _not_a_vocabulary(f"it is not JSON ({error})") from error
        if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
            raise _not_a_vocabulary("it is not a flat object from token to id")
        tokens = sorted(ids, key=ids.__getitem__)
        for number, token in enumerate(tokens):
            if ids[token] != number:
                raise _not_a_vocabulary(f"{token!r} has id {ids[token]}, expected {number}", token=token)
        return GeneVocabulary(tokens)

    def to_json(self) -> str:
        """Encode the vocabulary as canonical JSON: by id, without spaces."""
        return json.dumps(self.index, ensure_ascii=False, separators=(",", ":"))

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON; equal if and only if tokens and ids are."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def size(self) -> int:
        """Number of tokens, special ones included."""
        return len(self.tokens)

    @property
    def pad_id(self) -> int:
        """Id of ``<pad>``."""
        return self.index["<pad>"]

    @property
    def cls_id(self) -> int:
        """Id of ``<cls>``."""
        return self.index["<cls>"]

    @property
    def eoc_id(self) -> int:
        """Id of ``<eoc>``."""
        return self.index["<eoc>"]

    def map_genes(
        self,
        names: Sequence[str],
        *,
        ensembl_ids: Sequence[str] | None = None,
        genomes: Sequence[str] | None = None,
        sum_older: bool = False,
    ) -> GeneMapping:
        """Find G genes by symbol, else Ensembl id (versioned or not), else previous symbol, else alias.

        ``ensembl_ids`` (G entries, empty if missing) are used if a name is not a token; ``genomes`` names the assembly
        or species of each gene (prefixes such as ``GRCh38_`` are recognised without it). Names are case-sensitive:
        mouse ``Cd3d`` is not human CD3D. A column with an older name of a gene is skipped if the gene has a column of
        its own, unless ``sum_older``.
        """
        for beside in (ensembl_ids, genomes):
            assert beside is None or len(beside) == len(names), "one Ensembl id and genome for each name"
        return self._resolver.map(names, ensembl_ids, genomes=genomes, sum_older=sum_older)

    @functools.cached_property
    def _resolver(self) -> NameResolver:
        return NameResolver({token: number for token, number in self.index.items() if token not in SPECIAL_TOKENS})

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self.index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeneVocabulary) and self.tokens == other.tokens

    def __hash__(self) -> int:
        return hash(self.tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return GeneVocabulary, (self.tokens,)  # the look-up tables are rebuilt on demand


def _not_a_vocabulary(reason: str, **details: Any) -> ModelError:
    return ModelError(
        f"This is not a vocabulary: {reason}.",
        remedy="Use scGPT's vocab.json: each token once, ids from 0 on.",
        **details,
    )
