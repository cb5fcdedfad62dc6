"""Configuration of an ingest: where the cells are, the rules they must meet, where the corpus is written."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from cytoray.config import Config, Location
from cytoray.tokens.mapping import MIN_HUMAN_SHARE
from cytoray.tokens.tokenizer import TokenizerConfig

MAX_STORED_BINS = 256  # bins 0 to 255
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Severity = Literal["error", "drop", "warn"]


class ModalityConfig(Config):
    """A further matrix over the same cells: proteins, peaks, guides."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Its name in the corpus, such as protein.")
    matrix: str = Field(
        pattern=r"^(obsm|mod)/.+$", description="Where its counts are: obsm/NAME of the file, or mod/NAME of an h5mu."
    )
    feature_names: str | None = Field(
        None,
        description="uns/NAME or a column of the modality's var that names its features; default: found, or numbered.",
    )


class GuideConfig(Config):
    """A table of guide counts from which the perturbation of each cell is derived, as a column of obs."""

    matrix: str = Field(
        pattern=r"^(obsm|mod)/.+$", description="Where its counts are: obsm/NAME of the file, or mod/NAME."
    )
    feature_names: str | None = Field(
        None, description="uns/NAME or a column of the table's var that names its guides; default: found."
    )
    column: str = Field("perturbation", min_length=1, description="Column of obs that is added, or replaced.")
    target_pattern: str = Field(
        r"(?:sg)?(.+?)(?:[-_.]\d+|[-_.]?g(?:RNA)?\d+)?",
        description="Regular expression that matches a guide's name, with its target as the first group; by default "
        "STAT2g1, STAT2-1 and sgSTAT2_1 target STAT2.",
    )
    controls: tuple[str, ...] = Field(
        (), description="Guides or targets that are controls, beside those called NT, non-targeting or the like."
    )
    min_share: float = Field(
        0.8, ge=0, lt=1, description="Share of a cell's guide counts that its targets must exceed together."
    )
    min_counts: float = Field(5, gt=0, description="Least number of guide counts of each target of a cell.")
    max_targets: int = Field(1, ge=1, description="Maximum number of targets per cell; cells with more are unassigned.")

    @field_validator("target_pattern")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"it is not a regular expression ({error})") from error
        if groups < 1:
            raise ValueError("it has no group in brackets for the target")
        return pattern


class SourceConfig(Config):
    """One file (or folder) of cells, or a prefix of them."""

    uri: Location = Field(
        description="A file of cells in any known format, or a prefix ending in '/' below which all are read."
    )
    format: Literal["auto", "h5ad", "h5mu", "zarr", "10x_h5", "10x_mtx", "loom", "scb", "triples"] = Field(
        "auto", description="Format of the file; auto recognises it by its content."
    )
    name: str | None = Field(
        None,
        min_length=1,
        description="Identity of these cells in cell ids; default: the file's name, or a longer end of its path.",
    )
    matrix: str = Field(
        "auto", pattern=r"^(auto|X|raw\.X|layers/.+)$", description="auto (prefer counts), X, raw.X or layers/NAME."
    )
    rows: Literal["all", "train", "held_out"] = Field(
        "all", description="All cells, or one side of a split by cell name: a fifth is held out."
    )
    filter: str | None = Field(
        None, description="Cells to keep, as an expression over obs: disease == 'normal' and is_primary_data."
    )
    gene_column: str | None = Field(
        None,
        description="Column of var that names the genes; default: the index, or a column of symbols.",
    )
    ensembl_column: str | None = Field(
        None, description="Column of var with Ensembl ids, used for genes whose name is unknown."
    )
    modalities: tuple[ModalityConfig, ...] = Field((), description="Further matrices over the same cells.")
    guides: GuideConfig | None = Field(
        None,
        exclude_if=lambda guides: guides is None,  # which leaves the digests of older corpora as they were
        description="A table of guide counts that gives the perturbation of each cell; default: none.",
    )

    @property
    def identity(self) -> str:
        """Name that distinguishes these cells from those of another source."""
        return self.name or self.uri.rstrip("/").rpartition("/")[2]


class RuleConfig(Config):
    """Severity of each rule: error refuses the file, drop drops the cell, warn counts it in the report.

    A rule about a whole file cannot drop cells: ``drop`` is invalid there.
    """

    not_finite: Literal["error", "drop"] = Field("error", description="A value is NaN or infinite.")
    negative: Literal["error", "drop"] = Field("error", description="A value is below zero.")
    non_integer: Literal["error", "drop"] = Field("error", description="A value among counts is not an integer.")
    not_counts: Literal["error", "warn"] = Field(
        "error",
        description="The matrix does not hold counts and none can be recovered; warn keeps it as float32 expression.",
    )
    recovered: Literal["error", "warn"] = Field(
        "warn", description="The matrix is log-normalised; its counts are restored cell by cell."
    )
    not_recoverable: Severity = Field(
        "drop", description="A log-normalised cell whose counts do not come back exactly."
    )
    empty_cell: Severity = Field("drop", description="A cell without a single count.")
    too_few_genes: Severity = Field("drop", description="A cell with fewer vocabulary genes than min_genes.")
    duplicate_cell: Severity | Literal["off"] = Field(
        "drop", description="A cell with the same counts as another, in the file or across files; one is kept."
    )
    duplicate_barcode: Severity = Field(
        "warn", description="A cell name that occurs twice in a file; drop keeps the first."
    )
    duplicate_gene: Literal["error", "warn"] = Field(
        "warn", description="Columns for one gene; their counts are summed."
    )
    unknown_genes: Literal["error", "warn"] = Field("warn", description="Genes that the vocabulary does not know.")
    wrong_species: Literal["error", "warn"] = Field("error", description="The genes look like another species'.")
    mixed_species: Severity = Field(
        "drop",
        description="Human genes stand beside those of another species, and less than min_human_share of a cell's "
        "counts are human; warn keeps the human genes of all cells.",
    )
    unsorted_indices: Literal["error", "warn"] = Field(
        "warn", description="Column indices of a row not in order, or twice."
    )


class CheckConfig(Config):
    """Conditions under which cells and files are refused."""

    rules: RuleConfig = Field(RuleConfig(), description="Severity of each rule.")
    min_genes: int = Field(1, ge=1, description="A cell with fewer expressed vocabulary genes is dropped.")
    min_matched_genes: int = Field(10, ge=1, description="A file with fewer genes in the vocabulary is refused.")
    min_matched_share: float = Field(
        0.0, ge=0, le=1, description="A file with a smaller share of its genes in the vocabulary is refused."
    )
    min_recoverable: float = Field(
        0.95, gt=0, le=1, description="Share of log-normalised cells whose counts must come back exactly."
    )
    min_human_share: float = Field(
        MIN_HUMAN_SHARE, gt=0, le=1, description="Where species are mixed: share of a cell's counts that must be human."
    )
    sum_older_names: bool = Field(
        False, description="Sum columns with an older name of a gene into its own column, rather than leave them out."
    )
    max_bad_files: int = Field(0, ge=0, description="Files that may be quarantined before the ingest stops.")


class IngestConfig(Config):
    """Settings of an ingest, from files of cells to one committed corpus."""

    places: ClassVar[frozenset[str]] = frozenset({"store", "append", "read_concurrency", "rows_per_task"})

    kind: Literal["ingest"] = Field("ingest", description="Which stage this file configures.")
    store: Location = Field(description="Root of everything cytoray keeps: s3://bucket/prefix or a local folder.")
    corpus: str = Field(pattern=NAME_PATTERN, description="Name of the corpus.")
    append: bool = Field(False, description="If the corpus exists, add the sources that it lacks as its next version.")
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="The files to read.")
    filter: str | None = Field(
        None, description="Cells to keep, of every source, as an expression over obs; see sources.filter."
    )
    obs_columns: tuple[str, ...] = Field((), description="Columns of obs to keep; all of them if empty.")
    checks: CheckConfig = Field(CheckConfig(), description="The data rules.")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="Binning, when bins are stored.")
    binning: Literal["stored", "on_read"] = Field(
        "on_read", description="Store each cell's bins in the shards, or draw them anew in each epoch."
    )
    seed: int = Field(0, ge=0, description="Keys the global shuffle.")
    cells_per_shard: int = Field(
        40_000, ge=256, description="Target number of cells per shard file (about 60 MB at 1,500 genes)."
    )
    rows_per_task: int = Field(16_384, ge=1, description="Rows per read task.")
    read_concurrency: int = Field(2, ge=1, description="Concurrent read tasks.")

    @model_validator(mode="after")
    def _bins_fit_a_byte(self) -> IngestConfig:
        if self.binning == "stored" and self.tokenizer.n_bins > MAX_STORED_BINS:
            raise ValueError(f"stored bins take one byte: tokenizer.n_bins may be {MAX_STORED_BINS} at most")
        return self

    @field_validator("sources")
    @classmethod
    def _order_does_not_matter(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(sorted(sources, key=lambda source: source.uri))
