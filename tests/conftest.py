"""What all tests share: Ray's authentication, chosen before anything imports Ray, and one small cluster a session."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterator

import pytest

os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # not the user's own token
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two logical CPUs, kept for the session."""
    from cytoray.cluster import connected

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with connected(num_cpus=2):
            yield
