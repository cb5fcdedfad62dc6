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
        "  ingest: 30/200 cells, 5.0/s loss 2",  # too early to tell how long the rest takes
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


def test_after_a_resume_the_time_left_counts_only_what_is_done_now(clock, capsys):
    with progress.stage("pretrain", total=1000, unit="steps") as advance:
        clock.seconds += 300  # workers start
        advance(800, already=True)
        for _ in range(4):
            clock.seconds += 5
            advance(5, "loss 2.5")
    assert capsys.readouterr().err.splitlines() == [
        "  pretrain: 800/1000 steps, 0.0/s",
        "  pretrain: 805/1000 steps, 1.0/s loss 2.5",
        "  pretrain: 810/1000 steps, 1.0/s, 3 min 10 s left loss 2.5",
        "  pretrain: 815/1000 steps, 1.0/s, 3 min 5 s left loss 2.5",
        "  pretrain: 820/1000 steps, 1.0/s, 3 min 0 s left loss 2.5",
        "  pretrain: 820/1000 steps, 1.0/s, 3 min 0 s left done",
    ]


def test_what_was_done_before_may_come_between_the_work(clock, capsys):
    with progress.stage("ingest", total=1000, unit="cells") as advance:
        for amount, already in [(10, False), (10, False), (700, True), (10, False), (10, False)]:
            clock.seconds += 0 if already else 5
            advance(amount, already=already)
    assert capsys.readouterr().err.splitlines()[-1] == "  ingest: 740/1000 cells, 2.0/s, 2 min 10 s left done"


def test_the_start_up_does_not_count_into_the_time_left(clock, capsys):
    with progress.stage("pretrain", total=100, unit="steps") as advance:
        clock.seconds += 200
        advance(1)
        for _ in range(10):
            clock.seconds += 1
            advance(1)
    assert capsys.readouterr().err.splitlines()[-1] == "  pretrain: 11/100 steps, 1.0/s, 89 s left done"


def test_a_slow_first_step_gives_no_time_left(clock, capsys):
    """It compiles, or waits for the first data: nobody should be told that a run of minutes takes days."""
    with progress.stage("pretrain", total=1000, unit="steps") as advance:
        clock.seconds += 170
        advance(1)
        clock.seconds += 4
        advance(4)
        clock.seconds += 4
        advance(4)
    assert capsys.readouterr().err.splitlines() == [
        "  pretrain: 1/1000 steps, 0.0059/s",
        "  pretrain: 9/1000 steps, 1.0/s, 17 min left",
        "  pretrain: 9/1000 steps, 1.0/s, 17 min left done",
    ]


def test_the_time_left_follows_the_last_minute(clock, capsys):
    with progress.stage("pretrain", total=10_000, unit="steps") as advance:
        for steps_per_s in (100, 2):
            for _ in range(70):
                clock.seconds += 1
                advance(steps_per_s)
    assert capsys.readouterr().err.splitlines()[-1] == "  pretrain: 7140/10000 steps, 2.0/s, 24 min left done"


def test_steps_of_more_than_a_minute(clock, capsys):
    with progress.stage("pretrain", total=50, unit="steps") as advance:
        for _ in range(5):
            clock.seconds += 100
            advance(1)
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "  pretrain: 5/50 steps, 0.01/s, 1 h 15 min left",
        "  pretrain: 5/50 steps, 0.01/s, 1 h 15 min left done",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"), (119.4, "119 s"), (120, "2 min 0 s"), (250, "4 min 10 s"), (599.7, "10 min"), (3569, "59 min"),
        (3571, "1 h 0 min"), (4320, "1 h 12 min"), (200_000, "55 h 33 min"),
    ],
)  # fmt: skip
def test_durations_as_a_person_reads_them(seconds, text):
    assert progress.time_text(seconds) == text


def test_a_bar_tells_the_time_left_after_a_resume(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.stage("pretrain", total=100_000, unit="steps") as advance:
        clock.seconds += 100
        advance(50_000, already=True)
        for _ in range(2):
            clock.seconds += 10
            advance(50, "loss 0.125")
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).rstrip().splitlines()[-1]
    assert re.search(r"50100/100000\s+steps\s+loss 0\.125\s+2 h 46 min left", last)


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
    assert progress.silent(3, already=True) is None
    assert capsys.readouterr() == ("", "")
