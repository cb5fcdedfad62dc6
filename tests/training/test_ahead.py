"""Steps agreed on and prepared ahead: the same results, no waits of the host, and ends on all ranks at once."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture(params=[0, 1, 2, 3], ids="zero{}".format)
def stage(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def ranks(
    stage: int, pretrain_config: Callable[..., PretrainConfig], stream: CorpusStream, tmp_path: Path
) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    vocabulary = GeneVocabulary.load_default()
    config = pretrain_config("ahead", train={"accumulation": 2}, workers={"num_workers": 2, "zero_stage": stage})
    model = config.model.build(vocabulary_size=vocabulary.size, num_labels=0)
    objective = GenerativeObjective(GenerativeConfig(), vocabulary.pad_id)
    settings = WorkerSettings(config, model, vocabulary.pad_id, objective, "manifest", "config", "uuid", None, None)
    (tmp_path / "settings").write_bytes(pickle.dumps((settings, stream, NUM_STEPS)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = Path(__file__).parents[1] / "helpers" / "ahead_rank.py"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, (tmp_path / "settings", rank, WORLD_SIZE, port, tmp_path / "out"))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(WORLD_SIZE)
    ]
    outputs = [process.communicate(timeout=240)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    return [json.loads((tmp_path / f"out.{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


def test_steps_taken_ahead_are_those_taken_one_by_one_without_waiting(ranks: list[dict[str, Any]], stage: int) -> None:
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
