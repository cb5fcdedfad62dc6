"""The gene network that a bundle carries: attached when its genes are the model's, loaded where the bundle answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from cytoray.errors import ModelError
from cytoray.model.bundle import Attachment, ModelBundle
from cytoray.tasks.attaching import attached_files, local_folder
from cytoray.tasks.networks.network import EDGES, MANIFEST, GeneNetwork, load_network, parse_about, read_table

NAME = "networks"
FEWEST_KNOWN = 0.5  # share of the network's genes that the vocabulary has


@contextmanager
def collect_networks(uri: str, bundle: ModelBundle) -> Iterator[Mapping[str, Attachment]]:
    """Give the files of a network to be attached; ModelError if the model's vocabulary lacks most of its genes."""
    with local_folder(uri) as folder:
        network = load_network(str(folder))
        genes = sorted({*network.tfs, *network.targets})
        known = np.asarray(bundle.vocabulary.map_genes(genes, sum_older=True).ids) >= 0
        if known.mean() < FEWEST_KNOWN:
            some = ", ".join(np.array(genes)[~known][:3])
            raise ModelError(
                f"The vocabulary of this model has {int(known.sum()):,} of the {len(genes):,} genes of the network; it "
                f"does not have {some}.",
                remedy="Attach a network of human cells, named by symbols or Ensembl ids, or use another model.",
            )
        yield {name: Attachment(folder / name) for name in (EDGES, MANIFEST)}


def attached_network(bundle: ModelBundle) -> GeneNetwork | None:
    """Load the network of a bundle; None if it has none."""
    files = attached_files(bundle, NAME)
    if MANIFEST not in files or EDGES not in files:
        return None
    about = parse_about(files[MANIFEST].read(), name=f"{NAME}.{MANIFEST}")
    return GeneNetwork(read_table(files[EDGES].read(), EDGES, about), about)
