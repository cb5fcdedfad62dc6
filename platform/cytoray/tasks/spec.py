"""The parts of a task: the stages that train and evaluate it, and its requests, each named and imported when used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cytoray.config import Config
    from cytoray.evaluation.assessment_page import AssessedTask
    from cytoray.model.bundle import Attachment, ModelBundle
    from cytoray.tasks.assessing import AssessConfig
    from cytoray.tasks.endpoint import Endpoint
    from cytoray.tasks.pieces import Pieces

Value = TypeVar("Value")


@dataclass(frozen=True)
class Lazy(Generic[Value]):
    """Something in a module that is imported only when it is loaded: training libraries stay out of a service."""

    module: str
    name: str

    def load(self) -> Value:
        """Import the module and return what it calls ``name``."""
        return cast(Value, getattr(importlib.import_module(self.module), self.name))


@dataclass(frozen=True)
class TaskStage:
    """A stage of a task: a command and job named ``kind``, which is also the ``kind`` of its YAML files."""

    kind: str
    help: str  # of the command
    config: Lazy[type[Config]]  # of a module without heavy imports: files are checked before anything is loaded
    run: Lazy[Callable[[Any], dict[str, Any]]]  # from the configuration to the result to print, as JSON data
    from_card: Mapping[str, str] = field(default_factory=dict)  # keys of a finished run's result that its card holds


@dataclass(frozen=True)
class TaskAssessment:
    """Training and evaluation of a task on anyone's files: ``cytoray assess NAME``, whose options are the keys."""

    help: str  # of the command
    config: Lazy[type[AssessConfig]]  # of a module without heavy imports, with the kind ``assess-NAME``
    run: Lazy[Callable[[Any, Pieces], AssessedTask]]  # finished pieces are kept, see ``Pieces``


@dataclass(frozen=True)
class TaskAttachment:
    """Something fitted that a bundle can carry: ``cytoray models attach MODEL --NAME PLACE``.

    Its files lie in the bundle as ``NAME.FILE``.
    """

    name: str
    help: str  # of the option
    collect: Lazy[Callable[[str, ModelBundle], AbstractContextManager[Mapping[str, Attachment]]]]
    """Gives the files by name for a ``with`` block; raises CytorayError if they do not fit the model."""


@dataclass(frozen=True)
class TaskOffline:
    """Answers of a task's endpoint to the cells of files: a command and a kind of YAML files named ``kind``."""

    kind: str
    help: str  # of the command


@dataclass(frozen=True)
class TaskSpec:
    """A task; a part that it does not have is None."""

    name: str
    learning: TaskStage | None = None  # its configuration is a RunConfig
    evaluation: TaskStage | None = None
    assessment: TaskAssessment | None = None
    endpoint: Lazy[Endpoint[Any, Any]] | None = None  # of a module without training libraries
    attachment: TaskAttachment | None = None
    offline: TaskOffline | None = None  # of a task whose endpoint is about cells

    @property
    def stages(self) -> tuple[TaskStage, ...]:
        """The stages of the task, in the order in which they run."""
        return tuple(stage for stage in (self.learning, self.evaluation) if stage is not None)
