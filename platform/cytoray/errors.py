"""Every error a user can cause, each with a remedy, and able to cross from a Ray worker to the driver unchanged."""

from __future__ import annotations

from typing import Any


class CytorayError(Exception):
    """Something the user can mend: one sentence of what is wrong, one of what to do, and the data behind it.

    ``details`` holds JSON-serialisable facts (uri, shard, key path, offenders) for logs and for problem+json answers.
    """

    exit_code = 2

    def __init__(self, problem: str, *, remedy: str = "", **details: Any) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.details = details

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.problem, self.remedy, self.details)


def _rebuild(kind: type[CytorayError], problem: str, remedy: str, details: dict[str, Any]) -> CytorayError:
    """Undo ``CytorayError.__reduce__``: exceptions with keyword-only arguments do not pickle by themselves."""
    return kind(problem, remedy=remedy, **details)


class ConfigError(CytorayError):
    """A configuration that does not validate; names file, line, key path and the nearest valid key."""


class StorageError(CytorayError):
    """An object store or file system that could not be read or written."""


class NotFoundError(StorageError):
    """A named object, file or bucket that is not there."""


class ConflictError(StorageError):
    """A put-if-absent that lost: somebody else committed this name first."""


class DigestError(StorageError):
    """Stored bytes whose SHA-256 is not the one their manifest names."""


class CorpusError(CytorayError):
    """Cells that cannot be read, checked, ingested or streamed."""


class ModelError(CytorayError):
    """A model configuration, bundle or checkpoint that cannot be used."""


class TrainingError(CytorayError):
    """A training run that cannot start, go on or be resumed."""


class TrainingStoppedError(TrainingError):
    """A training run that was asked to stop and has committed a checkpoint; run it again to go on."""

    exit_code = 75  # EX_TEMPFAIL: not a failure, try again


class RegistryError(CytorayError):
    """A registered model, version or alias that cannot be found, written or trusted."""


class ServingError(CytorayError):
    """A service that cannot be started, reached or trusted."""


class RequestError(CytorayError):
    """A request to the service that cannot be answered as it stands; ``code`` is the stable name of the case."""

    def __init__(self, problem: str, *, remedy: str = "", code: str = "malformed_payload", **details: Any) -> None:
        super().__init__(problem, remedy=remedy, code=code, **details)
        self.code = code
