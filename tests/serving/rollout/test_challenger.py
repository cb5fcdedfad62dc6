"""A challenger beside the champion: its share, its comparison, and its failures, which clients do not notice."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from cytoray.serving.hosting.loading import load_service
from cytoray.serving.rollout.config import ChallengerConfig
from cytoray.serving.rollout.slot import ModelSlot
from cytoray.tasks import find_endpoint
from cytoray.tracking.server import connect as connect_to_mlflow

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
ANNOTATE = find_endpoint("annotate")
NUM_REQUESTS = 24


async def ask_all(slot: ModelSlot, bodies: list[bytes]) -> list[dict[str, Any]]:
    """Send requests one after the other, each when nothing is being compared any more."""
    answers = []
    for body in bodies:
        answers.append(json.loads((await slot.answer(ANNOTATE, body)).content))
        version = slot._challenger
        if version is not None and version.challenger is not None:
            await version.challenger.finish()
    return answers


@pytest.fixture
def bodies(make_counts: Any, as_request: Any) -> list[bytes]:
    return [json.dumps(as_request(make_counts(2, seed=seed))).encode() for seed in range(NUM_REQUESTS)]


@pytest.mark.parametrize("shadow", [True, False])
def test_both_versions_compute_the_same_share_and_are_compared(
    shadow: bool, publish: Any, follow: Any, runner: asyncio.Runner, bodies: list[bytes], offline: Any, make_counts: Any
) -> None:
    publish(1)
    publish(2, alias="challenger")
    slot = follow(challenger=ChallengerConfig(share=0.5, shadow=shadow))
    slot.follower.check()
    answers = runner.run(ask_all(slot, bodies))
    seen = slot.status().challenger
    assert seen is not None
    assert (seen.model.version, seen.dropped, seen.failed, seen.replaced) == ("2", 0, 0, 0)
    assert 4 <= seen.compared <= NUM_REQUESTS - 4
    versions = [answer["model"]["version"] for answer in answers]
    assert versions.count("2") == seen.answered == (0 if shadow else seen.compared)
    again = [answer["model"]["version"] for answer in runner.run(ask_all(slot, bodies))]
    assert again == versions, "the same request always goes to the same version"
    cosines = [
        float(cosine)
        for seed in range(NUM_REQUESTS)
        for cosine in (offline(1, make_counts(2, seed=seed)) * offline(2, make_counts(2, seed=seed))).sum(axis=1)
    ]
    assert seen.cells == 2 * seen.compared
    assert min(cosines) - 1e-5 <= seen.min_cosine <= seen.mean_cosine <= max(cosines) + 1e-5
    assert 0 <= seen.label_agreement <= 1
    for seed, answer in enumerate(answers):
        found = np.array([cell["embedding"] for cell in answer["cells"]])
        expected = offline(int(answer["model"]["version"]), make_counts(2, seed=seed))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_challenger_that_fails_is_not_noticed_by_clients(
    publish: Any, follow: Any, runner: asyncio.Runner, bodies: list[bytes]
) -> None:
    def load(args: Any, pinned: Any) -> Any:
        service = load_service(args, pinned)
        if pinned.version == "2":
            asyncio.run(service.close())  # it refuses every request
        return service

    publish(1)
    slot = follow(load=load, challenger=ChallengerConfig(share=1.0, shadow=False))
    assert slot.challenger is None
    publish(2, alias="challenger")
    slot.follower.check()
    answers = runner.run(ask_all(slot, bodies[:2]))
    assert [answer["model"]["version"] for answer in answers] == ["1", "1"]
    assert (slot.status().challenger.replaced, slot.status().challenger.answered) == (2, 0)


def test_the_challenger_goes_with_its_alias_and_may_become_champion(
    publish: Any, follow: Any, tracking: Any, runner: asyncio.Runner, bodies: list[bytes]
) -> None:
    publish(1)
    publish(2, alias="challenger")
    slot = follow(challenger=ChallengerConfig())
    slot.follower.check()
    assert slot.challenger.version == "2"
    client = connect_to_mlflow(tracking.uri)
    client.set_registered_model_alias("tiny", "champion", "2")
    slot.follower.check()
    assert (slot.model.version, slot.challenger) == ("2", None)
    client.set_registered_model_alias("tiny", "challenger", "1")
    slot.follower.check()
    assert slot.challenger.version == "1"
    client.delete_registered_model_alias("tiny", "challenger")
    slot.follower.check()
    assert slot.challenger is None
    assert slot.status().degraded is None
