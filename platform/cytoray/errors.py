"""Errors that a user can cause, each with a remedy; they pass from Ray workers to the driver unchanged."""

from __future__ import annotations

from typing import Any


class CytorayError(Exception):
    """Base of all errors that a user can fix: one sentence states the problem, another the remedy.

    ``details`` holds JSON-serialisable facts (uri, shard, key path, bad entries) for logs and problem+json responses.
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
    """A configuration that is not valid; names file, line, key path and the nearest valid key."""


class StorageError(CytorayError):
    """An object store or file system that could not be read or written."""


class NotFoundError(StorageError):
    """A named object, file or bucket that is missing."""


class ConflictError(StorageError):
    """A conflict: another writer created this name first."""


class DigestError(StorageError):
    """Stored bytes whose SHA-256 differs from the one in their manifest."""


class CorpusError(CytorayError):
    """Cells that cannot be read, checked, ingested or streamed."""


class ModelError(CytorayError):
    """A model configuration, bundle or checkpoint that cannot be used."""


class TrainingError(CytorayError):
    """A training run that cannot start, continue or be resumed."""


class TrainingStoppedError(TrainingError):
    """A training run that was asked to stop and has committed a checkpoint; run it again to continue."""

    exit_code = 75  # EX_TEMPFAIL: not a failure, try again


class RegistryError(CytorayError):
    """A registered model, version or alias that cannot be found, written or trusted."""


class GateError(RegistryError):
    """A model version that was not promoted: it does not meet the conditions of its gate."""

    exit_code = 3


class RegistryUnavailableError(RegistryError):
    """An MLflow, or its storage, that does not answer."""


class ServingError(CytorayError):
    """A service that cannot be started, reached or trusted."""


class RequestError(CytorayError):
    """A request that the service cannot answer; ``code`` is the stable name of the case."""

    def __init__(self, problem: str, *, remedy: str = "", code: str = "malformed_payload", **details: Any) -> None:
        super().__init__(problem, remedy=remedy, code=code, **details)
        self.code = code


class JobError(CytorayError):
    """A job that cannot be submitted, found or followed on its cluster."""
