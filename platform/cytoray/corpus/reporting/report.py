"""The data report: findings about every source and the fate of its cells, as a page and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cytoray
from cytoray.corpus.checking.profile import SourceProfile, merge_profiles
from cytoray.corpus.checking.source_checks import COUNT_KINDS
from cytoray.corpus.readers.base import SourceDescription
from cytoray.corpus.readers.finding import NotRead
from cytoray.errors import CytorayError, StorageError

FORMAT = 1
HTML_NAME, JSON_NAME = "report.html", "report.json"
MALFORMED, UNREACHABLE = "malformed", "unreachable"  # rules of a file that cannot be read


@dataclass(frozen=True)
class FileReport:
    """One source that was read."""

    description: SourceDescription
    profile: SourceProfile

    @property
    def unit(self) -> str:
        """The plural of what its values are: counts, or values."""
        are_counts = self.description.value_kind in COUNT_KINDS and not self.has_unrestored
        return "counts" if are_counts else "values"

    @property
    def has_unrestored(self) -> bool:
        """Whether some of its log-normalised cells were kept though they give no counts back."""
        return self.profile.warned.get("not_recoverable", 0) > 0


@dataclass(frozen=True)
class Quarantined:
    """One source that was left out, and why."""

    uri: str
    key: str  # the place in the file (a matrix, a table), empty if it is the file itself
    rule: str  # the rule it broke, or MALFORMED or UNREACHABLE
    reason: str
    remedy: str = ""

    @staticmethod
    def of(uri: str, error: CytorayError) -> Quarantined:
        """Record the error that refused ``uri``."""
        reason = error.problem.removeprefix(f"{uri}: ")
        rule = error.details.get("rule", UNREACHABLE if isinstance(error, StorageError) else MALFORMED)
        return Quarantined(uri, str(error.details.get("key", "")), str(rule), reason, error.remedy)


@dataclass(frozen=True)
class CorpusFacts:
    """The corpus that an ingest wrote."""

    name: str
    version: int
    digest: str
    num_cells: int
    num_bytes: int
    num_shards: int


@dataclass(frozen=True)
class DataReport:
    """The contents of a report on some sources; ``corpus`` is None if nothing was ingested."""

    title: str
    files: tuple[FileReport, ...]
    quarantined: tuple[Quarantined, ...] = ()
    corpus: CorpusFacts | None = None
    not_read: tuple[NotRead, ...] = ()  # files below a prefix

    @cached_property
    def total(self) -> SourceProfile:
        """The profile of all sources together."""
        return merge_profiles(file.profile for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON data, every profile whole."""
        return {
            "format": FORMAT,
            "cytoray": cytoray.__version__,
            "title": self.title,
            "corpus": dataclasses.asdict(self.corpus) if self.corpus is not None else None,
            "num_read": self.total.num_read,
            "num_kept": self.total.num_kept,
            "dropped": dict(self.total.dropped),
            "warned": dict(self.total.warned),
            "files": [
                {"description": dataclasses.asdict(file.description), "profile": file.profile.to_json()}
                for file in self.files
            ],
            "quarantined": [dataclasses.asdict(record) for record in self.quarantined],
            "not_read": [dataclasses.asdict(file) for file in self.not_read],
        }
