"""The scheduler under a virtual clock: every cell once, bounded waits, fair shares, budgets; no threads."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytoray.errors import RequestError
from cytoray.model.predictor import group_by_length
from cytoray.serving.batching.config import BatchingConfig
from cytoray.serving.batching.forming import MINIBATCH_TOKENS, PADDING, Batch
from cytoray.serving.batching.outlook import Outlook
from cytoray.serving.batching.queues import Ticket, Work
from cytoray.serving.batching.scheduler import Scheduler

PER_TOKEN = 1e-4  # seconds
FIXED = 2e-3
CONFIG = BatchingConfig(target_batch_s=0.1, max_wait_s=0.5)


class Simulation:
    """A model of known speed behind a scheduler."""

    def __init__(self, config: BatchingConfig = CONFIG, *, per_token: float = PER_TOKEN, fixed: float = FIXED) -> None:
        self.fixed = fixed
        self.scheduler: Scheduler[str] = Scheduler(config)
        self.now = 0.0
        self.per_token = per_token
        self.began: dict[tuple[str, int], float] = {}  # (request, row) -> when its batch began
        self.ended: dict[str, float] = {}
        self.batches: list[Batch[str]] = []
        self._left: dict[str, int] = {}

    def learn(self) -> Simulation:
        """Show the model how long batches of several lengths take."""
        for length, cells in itertools.product((10, 100, 300, 1000), (1, 8, 64)):
            self.submit(f"warm-{length}-{cells}", [length] * cells)
            self.run()
        self.began.clear(), self.ended.clear(), self.batches.clear()
        self.now += 1.0
        return self

    def submit(self, name: str, lengths: Any, **options: Any) -> Ticket[str]:
        work = Work(name, "kind", np.array(lengths, np.int64), **options)
        ticket = Ticket(work, now=self.now)
        self.scheduler.admit(ticket, self.now)
        self._left[name] = len(lengths)
        self.scheduler.add(ticket)
        return ticket

    def step(self) -> Batch[str] | None:
        """Run the next batch."""
        batch = self.scheduler.next(self.now)
        if batch is None:
            return None
        self.batches.append(batch)
        for take in batch.takes:
            for row in take.rows.tolist():
                place = (take.ticket.work.item, row)
                assert place not in self.began, "a cell is computed once"
                self.began[place] = self.now
        seconds = self.fixed + self.per_token * batch.tokens
        self.now += seconds
        for take in batch.takes:
            self._left[take.ticket.work.item] -= len(take.rows)
            if not self._left[take.ticket.work.item]:
                self.ended[take.ticket.work.item] = self.now
        self.scheduler.done(batch, seconds, self.now)
        return batch

    def run(self) -> None:
        while self.step() is not None:
            pass


requests = st.lists(
    st.tuples(
        st.lists(st.integers(1, 1500), min_size=1, max_size=40),  # lengths
        st.sampled_from("abcd"),  # caller
        st.booleans(),  # bulk
        st.floats(0, 0.3),  # seconds after the one before
    ),
    min_size=1,
    max_size=25,
)


def arrivals(simulation: Simulation, asked: list[Any]) -> Iterator[tuple[str, list[int]]]:
    """Submit requests at their times, while batches run."""
    due = simulation.now
    for number, (lengths, key, bulk, gap) in enumerate(asked):
        due += gap
        while simulation.now < due and simulation.step() is not None:
            pass
        simulation.now = max(simulation.now, due)
        simulation.submit(f"{number}", lengths, key=key, bulk=bulk)
        yield f"{number}", lengths
    simulation.run()


@settings(max_examples=40, deadline=None)
@given(requests)
def test_every_cell_is_computed_once_within_budgets(asked: list[Any]) -> None:
    simulation = Simulation().learn()
    submitted = dict(arrivals(simulation, asked))
    expected = {(name, row) for name, lengths in submitted.items() for row in range(len(lengths))}
    assert simulation.began.keys() == expected
    assert simulation.ended.keys() == submitted.keys()
    assert (simulation.scheduler.cells, simulation.scheduler.tokens) == (0, 0)
    for batch in simulation.batches:
        lengths = [int(take.ticket.work.tokens[row]) for take in batch.takes for row in take.rows]
        assert (batch.cells, batch.tokens, batch.longest) == (len(lengths), sum(lengths), max(lengths))
        assert batch.squares == sum(length**2 for length in lengths)
        if len(lengths) > 1:
            assert batch.longest * batch.cells <= CONFIG.max_batch_tokens
            assert batch.predicted_s <= CONFIG.target_batch_s * (1 + 1e-9)
            assert batch.tokens <= batch.padded_tokens <= batch.longest * batch.cells
    assert all(simulation.scheduler.backlog_s(bulk=bulk) == pytest.approx(0) for bulk in (False, True))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1500), st.floats(0, 0.05)), min_size=1, max_size=80), st.integers(1, 1500))
def test_no_cell_starves(others: list[tuple[int, float]], length: int) -> None:
    """An odd cell waits ``max_wait_s``, then only for cells that were there before it, whatever comes later."""
    simulation = Simulation().learn()
    simulation.submit("early", [100] * 30)
    simulation.submit("odd", [length])
    started = simulation.now
    crowd = itertools.cycle(others)
    bound = CONFIG.max_wait_s + FIXED + PER_TOKEN * 30 * 100 + 32 * CONFIG.target_batch_s
    for number in range(400):
        other, gap = next(crowd)
        simulation.submit(f"late {number}", [other] * 8)
        if not simulation.step() or ("odd", 0) in simulation.began:
            break
        simulation.now += gap if not simulation.scheduler.cells else 0.0
    assert simulation.began["odd", 0] - started <= bound


def overload(simulation: Simulation, keys: dict[str, bool], *, cells: int, seconds: float) -> Counter[str]:
    """Keep requests of each caller waiting for a time; returns the tokens that each got."""
    end, number = simulation.now + seconds, itertools.count()
    waiting: dict[str, list[str]] = {key: [] for key in keys}
    while simulation.now < end:
        for key, bulk in keys.items():
            waiting[key] = [name for name in waiting[key] if name not in simulation.ended]
            while len(waiting[key]) < 3:
                name = f"{key}/{next(number)}"
                length = 200 if key == "a" else 400
                simulation.submit(name, [length] * cells, key=key, bulk=bulk)
                waiting[key].append(name)
        simulation.step()
    got: Counter[str] = Counter()
    for batch in simulation.batches:
        for take in batch.takes:
            got[take.ticket.work.key] += take.tokens
    return got


@pytest.mark.parametrize("cells", [1, 64])
def test_callers_of_a_class_get_equal_shares_whatever_they_send(cells: int) -> None:
    simulation = Simulation().learn()
    got = overload(simulation, {"a": True, "b": True, "c": True}, cells=cells, seconds=20)
    batch = 2 * CONFIG.target_batch_s / PER_TOKEN
    assert max(got.values()) - min(got.values()) <= batch


def test_both_classes_get_their_share() -> None:
    got = overload(Simulation().learn(), {"a": False, "b": True}, cells=64, seconds=20)
    assert got["a"] / got.total() == pytest.approx(CONFIG.interactive_share, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1500), st.integers(0, 15), st.booleans())
def test_a_single_cell_beside_a_bulk_request_waits_for_one_batch(length: int, after: int, same_key: bool) -> None:
    simulation = Simulation().learn()
    simulation.submit("bulk", np.random.default_rng(0).integers(50, 1200, 10_000), key="b", bulk=True)
    for _ in range(after):
        simulation.step()
    simulation.step()  # the batch that runs when the cell arrives
    simulation.submit("one", [length], key="b" if same_key else "a")
    batch = simulation.step()
    assert batch is not None
    assert [take.ticket.work.item for take in batch.takes] == ["one"]  # nor is its batch filled with others


def test_a_caller_that_comes_late_is_next_and_does_not_catch_up() -> None:
    simulation = Simulation().learn()
    for number in range(5):
        simulation.submit(f"bulk {number}", [300] * 100, key="a", bulk=True)
    for _ in range(6):
        simulation.step()
    simulation.submit("b", [800] * 100, key="b", bulk=True)
    owners = []
    for _ in range(10):
        batch = simulation.step()
        assert batch is not None
        owners.append({take.ticket.work.key for take in batch.takes})
    assert owners[0] <= {"b"} or owners[1] <= {"b"}
    assert 4 <= sum("a" in owner for owner in owners) <= 6


def test_costs_are_learned_and_followed() -> None:
    simulation = Simulation().learn()
    fixed, per_token, per_square = simulation.scheduler.costs.of("kind").coefficients
    assert fixed == pytest.approx(FIXED, rel=0.15)
    assert per_token + 300 * per_square == pytest.approx(PER_TOKEN, rel=0.05)
    simulation.submit("before", [20] * 400)
    simulation.run()
    simulation.per_token *= 4  # somebody else uses the machine
    simulation.submit("after", [20] * 1000)
    simulation.run()
    assert simulation.batches[0].predicted_s == pytest.approx(CONFIG.target_batch_s, rel=0.1)
    assert simulation.batches[-2].predicted_s == pytest.approx(CONFIG.target_batch_s, rel=0.1)
    assert simulation.batches[-2].cells < 0.4 * simulation.batches[0].cells


def test_few_cells_of_all_lengths_are_one_batch() -> None:
    """Four requests of 16 cells: a batch for each range of lengths would have its fixed cost."""
    simulation, rng = (
        Simulation(BatchingConfig(target_batch_s=10.0), per_token=3.5e-6).learn(),
        np.random.default_rng(0),
    )
    lengths = rng.lognormal(5.8, 0.7, (4, 16)).clip(30, 900).astype(int)
    for number, own in enumerate(lengths):
        simulation.submit(f"{number}", own)
    simulation.run()
    (batch,) = simulation.batches
    minibatches = list(group_by_length(lengths.ravel(), batch_tokens=MINIBATCH_TOKENS))
    expected = sum(len(rows) * int(lengths.ravel()[rows].max()) for rows in minibatches)
    assert batch.padded_tokens == expected
    assert expected <= 1.15 * batch.tokens


def test_many_cells_are_batches_of_similar_length() -> None:
    config = BatchingConfig(target_batch_s=0.1)
    simulation, rng = Simulation(config, per_token=3.5e-6).learn(), np.random.default_rng(0)
    lengths = rng.lognormal(5.8, 0.7, 5000).clip(30, 1199).astype(int)
    simulation.submit("many", lengths)
    simulation.run()
    full = [batch for batch in simulation.batches if batch.predicted_s > 0.9 * config.target_batch_s]
    assert len(full) > 0.8 * len(simulation.batches) > 10
    waste = [1 - batch.tokens / (batch.longest * batch.cells) for batch in full]
    assert np.quantile(waste, 0.9) <= PADDING


def test_an_unknown_model_is_tried_with_few_tokens() -> None:
    simulation = Simulation(per_token=0.01)
    simulation.submit("first", [100] * 1000)
    first, second = simulation.step(), simulation.step()
    assert first is not None
    assert second is not None
    assert (first.cells, second.cells) == (40, 1)  # 4,096 tokens took 40 s, a batch may take 0.1


def test_a_batch_has_many_cells_if_it_takes_long_whatever_it_holds() -> None:
    simulation = Simulation(fixed=1.0).learn()
    for number in range(600):
        simulation.submit(f"{number}", [50])
    simulation.run()
    assert [batch.cells for batch in simulation.batches][1:-1] == pytest.approx([200] * 2, rel=0.25)


def refused(ask: Callable[[], object]) -> tuple[str, dict[str, Any]]:
    with pytest.raises(RequestError) as caught:
        ask()
    return caught.value.code, caught.value.details


def test_work_that_cannot_be_done_in_time_is_refused_at_once() -> None:
    simulation = Simulation().learn()
    lengths = [1000] * 200  # 20 s
    code, _ = refused(lambda: simulation.submit("late", lengths, deadline=simulation.now + 15))
    assert code == "deadline_exceeded"
    simulation.submit("fits", lengths, deadline=simulation.now + 25)
    code, details = refused(lambda: simulation.submit("behind", lengths, deadline=simulation.now + 25))
    assert (code, details["retry_after_s"] in {17, 18}) == ("overloaded", True)
    simulation.submit("no deadline", lengths)
    code, details = refused(lambda: simulation.submit("beyond the backlog", [1000]))
    assert (code, details["retry_after_s"] in {10, 11}) == ("overloaded", True)
    simulation.run()
    assert simulation.ended.keys() == {"fits", "no deadline"}


@pytest.mark.parametrize("cells", [16, 64])
@pytest.mark.parametrize("deadline_s", [1.0, 2.0, 5.0])
def test_what_is_admitted_under_overload_is_answered_in_time(cells: int, deadline_s: float) -> None:
    """Five times the load, at random times, cells of all lengths: hardly anything is computed in vain."""
    config = BatchingConfig(target_batch_s=0.2, max_backlog_s=deadline_s)
    simulation, rng = Simulation(config, per_token=3.5e-6, fixed=4e-3).learn(), np.random.default_rng(0)
    start = due = simulation.now
    asked: dict[str, float] = {}
    while due < start + 5:
        due += rng.exponential(cells * 1.5e-3 / 5)
        while simulation.now < due and simulation.step() is not None:
            pass
        simulation.now = max(simulation.now, due)
        lengths = rng.lognormal(5.8, 0.7, cells).clip(30, 1199).astype(int)
        with contextlib.suppress(RequestError):
            simulation.submit(f"{len(asked)}", lengths, bulk=True, deadline=due + deadline_s)
            asked[f"{len(asked)}"] = due + deadline_s
    simulation.run()
    in_time = [name for name, latest in asked.items() if simulation.ended.get(name, latest + 1) <= latest]
    assert len(in_time) >= 0.99 * len(asked)
    assert len(in_time) * cells * 1.5e-3 >= 0.8 * (simulation.now - start)  # of a model without fixed costs


def test_a_pace_that_is_slower_than_predicted_counts_in_admission() -> None:
    """Half of the time passes between batches, where their measured seconds do not show it."""
    simulation = Simulation().learn()
    simulation.submit("many", [1000] * 200, bulk=True)
    for _ in range(40):
        simulation.step()
        simulation.now += 0.1
    simulation.submit("next", [1000] * 10, bulk=True, deadline=simulation.now + 100)
    half = [1000] * 100  # 10 s, of which the queue has 16 already, which will take 32
    code, _ = refused(lambda: simulation.submit("late", half, bulk=True, deadline=simulation.now + 60))
    assert code == "overloaded"
    simulation.run()
    assert "next" in simulation.ended


def test_requests_that_are_being_read_count_as_work() -> None:
    scheduler = Simulation().learn().scheduler
    first = Outlook("kind", bulk=True, deadline=100.0, tokens=250_000)
    scheduler.expect(first, 0.0)  # 25 s
    assert refused(lambda: scheduler.expect(Outlook("kind", bulk=True, deadline=100.0 - 1e3), 0.0))[0] == "overloaded"
    second = Outlook("kind", bulk=True, deadline=100.0, tokens=100_000)
    scheduler.expect(second, 0.0)
    assert refused(lambda: scheduler.expect(Outlook("kind", bulk=True, deadline=100.0), 0.0))[0] == "overloaded"
    scheduler.expect(Outlook("kind", "another", bulk=True, deadline=100.0), 0.0)
    scheduler.forget(first)
    scheduler.expect(Outlook("kind", bulk=True, deadline=100.0), 0.0)


def test_admission_is_by_the_work_of_the_caller_not_of_all() -> None:
    simulation = Simulation().learn()
    for number in range(2):
        simulation.submit(f"{number}", [1000] * 200, key="greedy", bulk=True)
    assert refused(lambda: simulation.submit("more", [1000], key="greedy", bulk=True))[0] == "overloaded"
    assert (
        refused(lambda: simulation.scheduler.expect(Outlook("kind", "greedy", True), simulation.now))[0] == "overloaded"
    )
    simulation.submit("modest", [1000], key="modest", bulk=True, deadline=simulation.now + 1)
    simulation.submit("one", [1000], key="greedy", deadline=simulation.now + 1)
    simulation.run()
    assert {"modest", "one"} <= simulation.ended.keys()
    assert max(simulation.ended[name] for name in ("modest", "one")) < simulation.ended["0"]


def test_the_memory_of_the_queue_is_limited() -> None:
    simulation = Simulation(CONFIG.model_copy(update={"max_queued_tokens": 5000}), per_token=1e-7)
    simulation.submit("large", [1000] * 20)  # an empty queue takes any request
    code, details = refused(lambda: simulation.submit("one", [1000]))
    assert (code, details["retry_after_s"]) == ("overloaded", 1)


def test_what_became_impossible_while_waiting_is_given_up_before_it_is_computed() -> None:
    simulation = Simulation().learn()
    simulation.submit("first", [1000] * 100)  # 10 s
    simulation.submit("second", [1000] * 50, deadline=simulation.now + 26)
    simulation.per_token *= 2
    simulation.run()
    assert [ticket.work.item for ticket in simulation.scheduler.lost] == ["second"]
    assert sum(name == "second" for name, _ in simulation.began) < 50


def test_a_wrong_prediction_does_not_refuse_for_ever() -> None:
    simulation = Simulation(per_token=1.0)
    simulation.submit("slow", [100])  # the machine was suspended meanwhile
    simulation.run()
    simulation.per_token = PER_TOKEN
    for number in range(10):
        simulation.now += 11
        simulation.submit(f"{number}", [100], deadline=simulation.now + 20)
        simulation.run()
    assert {f"{number}" for number in range(10)} <= simulation.ended.keys()
