"""Configuration of the explorer: how large files and sessions may be, where they live, and the demo files."""

from __future__ import annotations

from pydantic import Field

from cytoray.config import Config, Location


class DemoConfig(Config):
    """A file of cells that the page offers to people who have none at hand."""

    name: str = Field(min_length=1, max_length=80, description="Title on the page.")
    uri: Location = Field(description="The file, in any format that `cytoray data` reads.")
    about: str = Field("", max_length=300, description="One sentence about the cells.")


BLOOD = DemoConfig(
    name="700 blood cells",
    uri="package://scanpy.datasets/10x_pbmc68k_reduced.h5ad",
    about="Peripheral blood of a healthy donor (10x Genomics), with the cell types that its authors gave.",
)


class ExplorerConfig(Config):
    """The explorer of a service, at `/`."""

    enabled: bool = Field(True, description="Whether the service has the page; its other routes do not depend on it.")
    folder: Location | None = Field(
        None,
        description="Folder for the files of sessions, shared by all replicas; default: below the system's temporary "
        "folder, for replicas on one machine.",
    )
    demos: tuple[DemoConfig, ...] = Field((BLOOD,), description="Files that the page offers.")
    max_sessions: int = Field(8, ge=1, description="Maximum number of open sessions; an upload beyond it gets a 503.")
    max_file_bytes: int = Field(4 * 2**30, ge=1, description="Maximum size of an uploaded file in bytes.")
    max_cells: int = Field(
        100_000, ge=1, le=1_000_000, description="Cells that are shown; of a larger file a random sample."
    )
    max_age_s: float = Field(14_400.0, gt=0, description="Age in seconds at which an unused session is deleted.")
    max_memory_bytes: int = Field(
        16 * 2**30, ge=2**30, description="Address space of the process that reads an uploaded file."
    )
    max_step_s: float = Field(1_800.0, gt=0, description="Maximum time in seconds to read a file, or to lay it out.")
