"""A person sees how far a stage is: a bar on a terminal, lines elsewhere, on stderr either way."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from cytoray import progress


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The time that progress sees, set by the test."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_off_a_terminal_a_line_comes_every_few_seconds_and_one_at_the_end(clock, capsys):
    with progress.stage("ingest", total=200, unit="cells") as advance:
        for step in range(10):
            clock.seconds += 2.0
            advance(10, f"loss {step}")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "  ingest: 30/200 cells, 5.0/s, 34 s left loss 2",
        "  ingest: 60/200 cells, 5.0/s, 28 s left loss 5",
        "  ingest: 90/200 cells, 5.0/s, 22 s left loss 8",
        "  ingest: 100/200 cells, 5.0/s, 20 s left done",
    ]


def test_a_stage_of_unknown_length_counts(clock, capsys):
    with progress.stage("list", total=0, unit="files") as advance:
        clock.seconds += 10
        advance(5)
    assert capsys.readouterr().err.splitlines() == ["  list: 5 files, 0.5/s", "  list: 5 files, 0.5/s done"]


def test_a_stage_that_fails_is_not_called_done(clock, capsys):
    def fail() -> None:
        with progress.stage("ingest", total=2, unit="cells") as advance:
            advance(1)
            raise RuntimeError("torn")

    with pytest.raises(RuntimeError, match="torn"):
        fail()
    assert "done" not in capsys.readouterr().err


def test_on_a_terminal_a_bar_moves(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.stage("pretrain", total=4, unit="steps") as advance:
        advance(1)
        advance(3, "loss 0.125")
    captured = capsys.readouterr()
    assert captured.out == ""
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", captured.err).rstrip().splitlines()[-1]
    assert "pretrain" in last
    assert re.search(r"4/4\s+steps\s+loss 0\.125", last)


def test_nobody_watching_costs_nothing(capsys):
    assert progress.silent(3, "note") is None
    assert capsys.readouterr() == ("", "")
