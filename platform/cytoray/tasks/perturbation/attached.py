"""The perturbation model that a bundle carries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cytoray.model.bundle import Attachment, ModelBundle
from cytoray.tasks.attaching import attached_files, local_folder
from cytoray.tasks.perturbation.generator import find_generator
from cytoray.tasks.perturbation.model_files import ARRAYS, MANIFEST, load_model, read_model
from cytoray.tasks.perturbation.predicting import PerturbationPredictor

NAME = "perturbations"


@contextmanager
def collect_perturbations(uri: str, bundle: ModelBundle) -> Iterator[Mapping[str, Attachment]]:
    """Give the files of a perturbation model to be attached; it has genes of its own and fits any bundle.

    Raises ModelError if it predicts with a generator that ``bundle`` is not.
    """
    with local_folder(uri) as folder:
        load_model(folder).with_generator(lambda use: find_generator(bundle, "this bundle"))
        yield {name: Attachment(folder / name) for name in (ARRAYS, MANIFEST)}


def attached_perturbations(bundle: ModelBundle) -> PerturbationPredictor | None:
    """Load the perturbation model of a bundle; None if it has none."""
    files = attached_files(bundle, NAME)
    if MANIFEST not in files or ARRAYS not in files:
        return None
    found = read_model(files[MANIFEST].read(), files[ARRAYS].read(), name="the perturbation model")
    return found.with_generator(lambda use: find_generator(bundle, "this bundle"))
