"""Tokens of cells at inference: a fixed rule for each gene, so that similar cells get similar answers.

Training draws a bin for each tied value (count 1 may be bin 1 to 16) and samples the genes of long cells. If inference
drew bins by the content of the cell as well, one more gene or another seed would change all draws, and with them the
labels of many cells. So each gene has one fixed position among the possible bins of its value, the same in all cells,
and all genes are used. The mean bin is as stable but less accurate (69.5 % instead of 73.8 % of 768 cells of pbmc3k),
since the model does not see it in training.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cytoray.config import Config


class InferenceConfig(Config):
    """Tokens of cells at inference; saved with a model as ``inference`` in its ``preprocessing.json``."""

    mode: Literal["by_gene", "drawn"] = Field(
        "by_gene",
        description="by_gene: the bin of a tied value depends on its gene alone, and all genes are used up to "
        "max_length; drawn: ties and samples are drawn by seed and content of the cell, and cells are sampled to "
        "the length used in training.",
    )
    max_length: int = Field(
        8192,
        gt=1,
        description="Maximum number of tokens per cell with mode by_gene, <cls> included; longer cells are sampled.",
    )


DRAWN = InferenceConfig(mode="drawn")  # of older bundles, which do not record it
