"""The command of the StatefulSet redis, run with Debian's Redis: it asks for a password, and keeps what was written."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from redis_server import PASSWORD, ask, free_port, redis

pytestmark = pytest.mark.infra


def test_redis_asks_for_the_password_and_keeps_what_was_written(tmp_path: Path):
    port = free_port()
    with redis(tmp_path, port) as process:
        assert "NOAUTH" in ask(port, "get", "head", password=None)
        assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
        assert (tmp_path / "run/redis/redis.conf").stat().st_mode & 0o077 == 0
        assert ask(port, "set", "head", "state") == "OK"
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    with redis(tmp_path, port):
        assert ask(port, "get", "head") == "state"
