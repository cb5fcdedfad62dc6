"""Configuration of the assessment of gene networks; it imports little, as its keys are options of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cytoray.config import Location
from cytoray.tasks.assessing import AssessConfig
from cytoray.tasks.networks.config import FACTORS, GENE_SETS, InferNetworksConfig

if TYPE_CHECKING:
    from cytoray.tasks.networks.screen import ScreenConfig

_SHARED = (
    "data", "out", "tfs", "model", "gene_sets", "num_targets", "min_share", "max_cells", "pool_size", "max_pools",
    "num_trees", "block_size", "knock_out_cells", "seed", "run_on", "num_cpus", "store", "tracking", "cache_folder",
)  # fmt: skip


class AssessNetworksConfig(AssessConfig):
    """Configuration of the assessment of gene networks."""

    places: ClassVar[frozenset[str]] = AssessConfig.places | {"run_on", "num_cpus"}
    inputs: ClassVar[tuple[str, ...]] = ("data", "truth", "screen", "tfs")

    kind: Literal["assess-networks"] = Field("assess-networks", description="Which stage this file configures.")
    truth: Location | None = Field(
        None, description="Table of known edges: tsv or csv with tf, target and optionally mor (sign) and confidence."
    )
    confidence: tuple[str, ...] = Field(
        ("A", "B"), description="Levels of confidence that count, if the table has them; none: all."
    )
    screen: Location | None = Field(None, description="File of cells in which factors were knocked out.")
    perturbation_key: str = Field("perturbation", min_length=1, description="Column of obs with the knocked-out gene.")
    control: str = Field("control", min_length=1, description="Value of that column for cells without a knock-out.")
    batch_key: str | None = Field(
        None, min_length=1, description="Column of obs of the screen: knock-outs are compared with controls of a batch."
    )
    tfs: Location | None = Field(None, description=FACTORS)
    gene_sets: str = Field("go_bp", min_length=1, description=GENE_SETS)
    num_targets: int = Field(1_500, ge=1, description="Maximum number of targets: the most variable genes.")
    min_share: float = Field(0.03, ge=0, lt=1, description="Least share of cells that express a gene of the network.")
    max_cells: int = Field(100_000, ge=40, description="Maximum number of cells; of more, a random sample is used.")
    pool_size: int = Field(15, ge=1, description="Cells that are averaged, each with its nearest ones; 1: no pooling.")
    max_pools: int = Field(5_000, ge=20, description="Maximum number of such averages that trees are grown on.")
    num_trees: int = Field(200, ge=1, description="Boosted trees per target, half of them of each half of the cells.")
    block_size: int = Field(100, ge=1, description="Targets per block: the unit of resuming and of Ray's tasks.")
    knock_out_cells: int = Field(200, ge=1, description="Cells in which the model's knock-out of a factor is computed.")
    run_on: Literal["auto", "here", "ray"] = Field(
        "auto", description="Where blocks are computed: in this process or by Ray's tasks; auto: by Ray if it pays."
    )
    num_cpus: int = Field(2, ge=1, description="Logical CPUs when Ray is started here.")

    @model_validator(mode="after")
    def _something_is_known(self) -> Self:
        if self.truth is None and self.screen is None:
            raise ValueError("name a table of known edges (truth), a screen of knock-outs (screen), or both")
        return self

    def screen_config(self) -> ScreenConfig | None:
        """Return where the screen is, None without one."""
        from cytoray.tasks.networks.screen import ScreenConfig

        if self.screen is None:
            return None
        return ScreenConfig(self.screen, self.perturbation_key, self.control, self.batch_key)

    def inference(self) -> InferNetworksConfig:
        """Return the configuration of the inference that is assessed."""
        return InferNetworksConfig(data=self.data).model_copy(update={name: getattr(self, name) for name in _SHARED})
