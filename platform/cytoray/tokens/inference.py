"""How cells become tokens at inference: by a fixed rule for each gene, so that similar cells get similar answers.

Training draws a bin for each tied value (count 1 may be bin 1 to 16) and samples the genes of long cells. If inference
draws as well, by the content of the cell, then one more gene or another seed redraws everything and changes the labels
of many cells. So each gene keeps one place among the bins open to its value, in all cells, and all genes are used. The
mean bin is as stable but less accurate: 69.5 % of 768 cells of pbmc3k, not 73.8 %, since training never shows it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cytoray.config import Config


class InferenceConfig(Config):
    """Tokens of cells at inference; saved with a model as ``inference`` in its ``preprocessing.json``."""

    mode: Literal["by_gene", "drawn"] = Field(
        "by_gene",
        description="by_gene: which bin a tied value takes depends on its gene alone, and all genes are used up to "
        "max_length; drawn: ties and samples are drawn by seed and content of the cell, and cells are cut to the "
        "length of training.",
    )
    max_length: int = Field(
        8192, gt=1, description="Maximum tokens of a cell with mode by_gene, <cls> included; longer cells are sampled."
    )


DRAWN = InferenceConfig(mode="drawn")  # of bundles written before it was recorded
