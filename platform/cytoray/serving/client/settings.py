"""Settings of a client, given as keyword arguments of ``Client`` and ``AsyncClient``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict

import httpx

from cytoray.errors import RequestError

Wire = Literal["arrow", "json"]
Progress = Callable[[int, int], object]  # (cells answered, cells)
PATIENCE_S = 900.0  # a large reference takes minutes to be fitted to other genes
DEADLINE_S = 300.0
KEY_VARIABLE = "CYTORAY_API_KEY"


class ClientSettings(TypedDict, total=False):
    """Optional settings of a client."""

    cells_per_request: int  # at most; smaller if the service asks for that
    parallel: int  # requests in flight at most; fewer while the service is busy
    deadline: float  # seconds for which a request is sent again after failures that may pass; 0: never
    patience: float  # seconds for which it is sent again while the service is being fitted to its genes
    key: str | None  # API key; default: $CYTORAY_API_KEY
    model: str | None  # one of several models of the service; default: the one that it serves by default
    wire: Wire  # how cells and answers travel; JSON is also used if the service does not read Arrow
    progress: bool | Progress  # True: a progress bar; a function: called with the cells answered, and all cells
    transport: httpx.AsyncBaseTransport | None  # instead of a network, such as httpx.ASGITransport(app)


@dataclass(frozen=True)
class Settings:
    """The settings of a client, checked."""

    url: str
    timeout: float  # seconds for the answer to one request
    cells_per_request: int = 256
    parallel: int = 4
    deadline: float = DEADLINE_S
    patience: float = PATIENCE_S
    key: str | None = None
    model: str | None = None
    wire: Wire = "arrow"
    progress: bool | Progress = False
    transport: httpx.AsyncBaseTransport | None = None

    def __post_init__(self) -> None:
        for name in ("cells_per_request", "parallel"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}.", remedy="It must be at least 1.")
        if not self.url.startswith(("http://", "https://")):
            raise RequestError(f"{self.url!r} is not the URL of a service.", remedy="Write http://HOST:PORT.")

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        key = self.key or os.environ.get(KEY_VARIABLE)
        return {"Authorization": f"Bearer {key}"} if key else {}
