"""Steps agreed on and prepared ahead: the same results, no waits of the host, and ends on all ranks at once."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import run_together
from rank_group import new_meeting

from cytoray.corpus.stream import CorpusStream
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import GenerativeConfig, PretrainConfig
from cytoray.training.loop import WorkerSettings
from cytoray.training.objectives import GenerativeObjective

pytestmark = pytest.mark.timeout(300)
NUM_STEPS = 4
WORLD_SIZE = 2
# The update waits for the norm, to be left out if that is not finite; DeepSpeed 1 and 2 look again when they clip.
WAITS = {0: 1, 1: 2, 2: 2, 3: 1}


@pytest.fixture(scope="module")
def all_ranks(
    make_config: Callable[[Path], Callable[..., PretrainConfig]],
    stream: CorpusStream,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, Any]]:
    """What each of two ranks found, by ZeRO stage."""
    vocabulary, folder = GeneVocabulary.load_default(), tmp_path_factory.mktemp("ahead")
    pretrain_config, settings = make_config(folder / "journal"), {}
    for stage in WAITS:
        config = pretrain_config("ahead", train={"accumulation": 2}, workers={"num_workers": 2, "zero_stage": stage})
        model = config.model.build(vocabulary_size=vocabulary.size, num_labels=0)
        objective = GenerativeObjective(GenerativeConfig(), vocabulary.pad_id)
        settings[str(stage)] = WorkerSettings(
            config, model, vocabulary.pad_id, objective, "manifest", "config", "uuid", None, None
        )
    (folder / "settings").write_bytes(pickle.dumps((settings, stream, NUM_STEPS)))
    meeting = new_meeting(folder)
    script = Path(__file__).parents[1] / "helpers" / "ahead_rank.py"
    command, rest = (
        [sys.executable, str(script), str(folder / "settings")],
        [str(WORLD_SIZE), meeting, str(folder / "out")],
    )
    run_together([[*command, str(rank), *rest] for rank in range(WORLD_SIZE)], timeout_s=240)
    return [json.loads((folder / f"out.{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("stage", WAITS, ids="zero{}".format)
def test_steps_taken_ahead_are_those_taken_one_by_one_without_waiting(
    all_ranks: list[dict[str, Any]], stage: int
) -> None:
    ranks = [rank[str(stage)] for rank in all_ranks]
    for rank in ranks:
        assert rank["together"] == rank["one_by_one"], "bit for bit"
        assert rank["together"] == ranks[0]["together"]
        assert len({figures["losses"]["loss"] for figures in rank["together"]}) == NUM_STEPS
        assert all(figures["gradient_norm"] > 0 for figures in rank["together"])
        assert rank["fetch"] == {"allreduce": 1, "sync": 1}, "for all steps"
        for traffic in rank["traffic"][1:]:  # the first step sets up buffers at stage 3
            assert traffic == rank["traffic"][1], "the same in each step"
            assert traffic["sync"] == WAITS[stage]
            assert stage != 1 or traffic == {"allreduce": 2, "allgather_base": 1, "sync": 2}, "gradients, norm; weights"
    # A wish of one rank ends both after the same step, though both had one more than that to take.
    assert [rank["stopped"] for rank in ranks] == [[0, 1], [0, 1]]
    # Rank 0 hears why rank 1 cannot read step 2, after both have taken what came before.
    expected = {"taken": [0, 1], "error": "Shard 7 is damaged. Ingest it again."}
    assert [rank["failed"] for rank in ranks] == [expected, expected]
