"""What an ingest is told: where the cells are, what is wrong with a cell, where the corpus goes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cytoray.config import Config, Location
from cytoray.tokens.tokenizer import TokenizerConfig

MAX_STORED_BINS = 256  # bins 0 to 255


class SourceConfig(Config):
    """One file of cells, or a prefix of them."""

    uri: Location = Field(
        description="An .h5ad file, or a folder or prefix ending in '/' whose .h5ad files are all read."
    )
    name: str | None = Field(
        None,
        min_length=1,
        description="Identity of these cells in cell ids; default: the file's name (or path in URI/).",
    )
    matrix: str = Field(
        "auto", pattern=r"^(auto|X|raw\.X|layers/.+)$", description="auto (prefer counts), X, raw.X or layers/NAME."
    )
    rows: Literal["all", "train", "held_out"] = Field(
        "all", description="All cells, or one side of a split by cell name: a fifth is held out."
    )
    gene_column: str | None = Field(None, description="Column of var that names the genes; the index if null.")
    ensembl_column: str | None = Field(None, description="Column of var with Ensembl ids, tried where a name fails.")

    @property
    def identity(self) -> str:
        """What tells these cells from those of another source."""
        return self.name or self.uri.rpartition("/")[2]


class CheckConfig(Config):
    """When cells and files are refused."""

    min_genes: int = Field(1, ge=1, description="A cell with fewer expressed vocabulary genes is dropped.")
    min_matched_genes: int = Field(10, ge=1, description="A file with fewer genes in the vocabulary is refused.")
    min_recoverable: float = Field(
        0.95, gt=0, le=1, description="Share of log-normalised cells whose counts must come back exactly."
    )


class IngestConfig(Config):
    """From files of cells to one committed corpus."""

    places: ClassVar[frozenset[str]] = frozenset({"store", "read_concurrency"})

    kind: Literal["ingest"] = Field("ingest", description="Which stage this file configures.")
    store: Location = Field(description="Root of everything cytoray keeps: s3://bucket/prefix or a local folder.")
    corpus: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the corpus.")
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="The files to read.")
    obs_columns: tuple[str, ...] = Field((), description="Columns of obs to keep; all of them if empty.")
    checks: CheckConfig = Field(CheckConfig(), description="The data rules.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="Binning, when bins are stored.")
    binning: Literal["stored", "on_read"] = Field(
        "on_read", description="Keep each cell's bins in the shards, or draw them anew each epoch."
    )
    seed: int = Field(0, ge=0, description="Keys the global shuffle.")
    cells_per_shard: int = Field(40_000, ge=256, description="Target cells a shard file (about 60 MB at 1,500 genes).")
    rows_per_task: int = Field(4_096, ge=1, description="Rows one read task takes.")
    read_concurrency: int = Field(2, ge=1, description="Read tasks at a time.")

    @model_validator(mode="after")
    def _bins_fit_a_byte(self) -> IngestConfig:
        if self.binning == "stored" and self.tokenizer.n_bins > MAX_STORED_BINS:
            raise ValueError(f"stored bins take one byte: tokenizer.n_bins may be {MAX_STORED_BINS} at most")
        return self

    @field_validator("sources")
    @classmethod
    def _order_does_not_matter(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(sorted(sources, key=lambda source: source.uri))
