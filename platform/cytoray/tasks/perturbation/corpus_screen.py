"""The perturbations of a corpus: which genes each hits, and which cells are left out."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass

import numpy as np

from cytoray.corpus.manifest import CorpusManifest
from cytoray.corpus.streaming.members import MemberOptions, ObsColumn, find_members
from cytoray.errors import CorpusError
from cytoray.tasks.perturbation.names import suffix_warnings
from cytoray.tokens.perturbations import Perturbation, is_unassigned, parse_perturbation
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.perturbation_config import PerturbationConfig

logger = logging.getLogger(__name__)
CONDITION = "perturbation"  # tokens of drugs and the like are perturbation:NAME
LISTED = 20  # names at most in an error


@dataclass(frozen=True)
class Screen:
    """The perturbations of a corpus that are used, and the number of cells of the others."""

    perturbations: dict[str, Perturbation]  # by value of the column, without the control
    control: str
    batches: tuple[str, ...] | None  # those with control cells
    num_left_out: dict[str, int]  # cells, by value of the column

    @property
    def names(self) -> tuple[str, ...]:
        """Values of the column, in the order of their codes: the control last."""
        return (*self.perturbations, self.control)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Parts that are not genes, which get tokens of their own."""
        return tuple(sorted({other for each in self.perturbations.values() for other in each.others}))

    @property
    def genes(self) -> tuple[str, ...]:
        """All genes that are perturbed."""
        return tuple(sorted({gene for each in self.perturbations.values() for gene in each.genes}))


def read_screen(store: str, manifest: CorpusManifest, config: PerturbationConfig, vocabulary: GeneVocabulary) -> Screen:
    """Find the perturbations of a corpus; CorpusError if there are no controls, or fewer than two perturbations."""
    key = config.perturbation_key
    column = find_members(store, manifest, MemberOptions((ObsColumn(key),)), seed=0).columns[key]
    counts = dict(zip(column.values, np.bincount(column.codes[column.codes >= 0]).tolist(), strict=True))
    if config.control not in counts:
        near = difflib.get_close_matches(config.control, counts, n=5, cutoff=0.4) or sorted(counts)[:LISTED]
        raise CorpusError(
            f"Corpus {manifest.name!r}: no cell has {config.control!r} in {key!r}, so there are no control cells.",
            remedy=f"Set perturbation.control to its value in control cells. Values there: {', '.join(near)}.",
            key="perturbation.control",
        )
    unused = {name for name in counts if name in config.left_out or is_unassigned(name)} - {config.control}
    names = [name for name in counts if name != config.control and name not in unused]
    parsed = {name: parse_perturbation(name, vocabulary=vocabulary, control=config.control) for name in names}
    unused |= {name for name, each in parsed.items() if not each.genes and not each.others}  # controls by another name
    parsed = {name: each for name, each in parsed.items() if name not in unused}
    for note in suffix_warnings(parsed.values(), f"Corpus {manifest.name!r}, {key}"):
        logger.warning(note)
    unknown = [name for name, each in parsed.items() if each.others]
    if unknown and config.unknown_targets == "refuse":
        raise CorpusError(
            f"Corpus {manifest.name!r}: these values of {key!r} are not genes that the model knows: "
            f"{', '.join(unknown[:LISTED])}{', …' if len(unknown) > LISTED else ''}.",
            remedy="Set perturbation.unknown_targets to leave_out, or to condition for drugs and cytokines; name "
            "values that are not perturbations in perturbation.left_out.",
            key="perturbation.unknown_targets",
        )
    if config.unknown_targets == "leave_out":
        unused |= set(unknown)
        parsed = {name: each for name, each in parsed.items() if name not in unused}
    if len(parsed) < 2:
        raise CorpusError(
            f"Corpus {manifest.name!r}: {key!r} has {len(parsed)} perturbations that can be used"
            f" ({', '.join(parsed) or 'none'}).",
            remedy="A model of perturbations needs at least two, beside control cells.",
        )
    left_out = {name: counts[name] for name in sorted(unused)}
    if left_out:
        logger.info("left out: %s", ", ".join(f"{count:,} cells {name!r}" for name, count in left_out.items()))
    return Screen(parsed, config.control, _batches_with_controls(store, manifest, config), left_out)


def _batches_with_controls(store: str, manifest: CorpusManifest, config: PerturbationConfig) -> tuple[str, ...] | None:
    """The batches that have control cells; None without a column of batches."""
    if config.batch_key is None:
        return None
    columns = (ObsColumn(config.perturbation_key, values=(config.control,)), ObsColumn(config.batch_key))
    return find_members(store, manifest, MemberOptions(columns), seed=0).columns[config.batch_key].values
