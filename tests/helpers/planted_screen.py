"""Small screens in which perturbed genes of one pathway have about the same effect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoray.tasks.perturbation import assessment, judging, knowledge

PATHWAYS = {
    "interferon": ("IFNGR1", "IFNGR2", "JAK1", "STAT1"),
    "hedgehog": ("SMO", "GLI1", "GLI2", "SUFU"),
    "autophagy": ("ATG5", "ATG7", "ATG12", "ULK1"),
}
NEW = "JAK2"  # of the interferon pathway, without cells
TARGETS = tuple(gene for genes in PATHWAYS.values() for gene in genes)
NUM_GENES = 120
GENES = (*TARGETS[:6], *(f"GENE{number}" for number in range(NUM_GENES - 6)))
DOUBLE = "IFNGR1+SMO"


def screen(
    cells_each: int = 40,
    *,
    targets: tuple[str, ...] = TARGETS,
    doubles: bool = False,
    doses: tuple[float, ...] = (1.0,),
    seed: int = 0,
) -> anndata.AnnData:
    """Draw control cells and cells of each target and dose, which effects are proportional to, in two batches."""
    rng = np.random.default_rng(3)
    base = rng.gamma(0.8, 1.5, NUM_GENES) + 0.3
    programs = {name: np.where(rng.random(NUM_GENES) < 0.2, rng.normal(0, 1.3, NUM_GENES), 0) for name in PATHWAYS}
    own = {target: rng.normal(0, 0.15, NUM_GENES) for target in TARGETS}
    batch_effect = np.exp(rng.normal(0, 0.4, (2, NUM_GENES)))
    path_of = {gene: name for name, genes in PATHWAYS.items() for gene in genes}
    names = ["control"] * (3 * cells_each) + [name for name in targets for _ in range(cells_each * len(doses))]
    names += [DOUBLE] * cells_each if doubles else []
    given = [0.0] * (3 * cells_each) + [dose for _ in targets for dose in doses for _ in range(cells_each)]
    given += [1.0] * (len(names) - len(given))
    draw = np.random.default_rng(seed)
    counts, batches = [], draw.integers(0, 2, len(names))
    for name, batch, dose in zip(names, batches, given, strict=True):
        effect = np.zeros(NUM_GENES)
        for part in name.split("+") if name != "control" else []:
            effect += programs[path_of[part]] + own[part]
            if part in GENES:
                effect[GENES.index(part)] = -3
        counts.append(draw.poisson(base * np.exp(dose * effect) * batch_effect[batch] * draw.uniform(0.7, 1.4)))
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(names),
            "batch": [f"b{batch}" for batch in batches],
            "dose": given,
            "cell_type": np.array(["T", "B", "NK", "Mono"])[np.arange(len(names)) % 4],
        },
        index=[f"c{row}" for row in range(len(names))],
    )
    matrix = sparse.csr_matrix(np.array(counts, np.float32))
    return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=list(GENES)))


def write_sets(folder: Path) -> Path:
    """Write the pathways as gene sets."""
    lines = [f"{name}\tplanted\t" + "\t".join((*genes, NEW) if name == "interferon" else genes) for name, genes in
             PATHWAYS.items()]  # fmt: skip
    path = folder / "pathways.gmt"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextmanager
def small_assessments() -> Iterator[None]:
    """No packaged gene sets, fewer draws, and one unit with tests of its own: seconds instead of minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knowledge, "SHIPPED", ())
        patch.setattr(judging, "NUM_DRAWS", 50)
        patch.setattr(assessment, "MOST_TESTED_UNITS", 1)
        yield
