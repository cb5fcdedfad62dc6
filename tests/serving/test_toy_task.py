"""A task of a row in the table: this file adds one, and nothing else is touched to configure, run, serve and ask it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
import torch
from pydantic import Field
from ray import cloudpickle
from small_corpus import write_corpus

from cytoray.config import Config
from cytoray.corpus.stream import open_stream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import ConfigError, RequestError
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.losses import SummedLoss
from cytoray.model.transformer import ScGPT
from cytoray.registry.opening import open_model
from cytoray.serving.client import Client
from cytoray.serving.sending import check_cells
from cytoray.stages.config import load_stage_config, stage_configs
from cytoray.stages.job import run_job
from cytoray.tasks import TASKS, find_endpoint, learning_stages
from cytoray.tasks.config import FromModelConfig
from cytoray.tasks.endpoint import Answers, Endpoint, Question, ServedModel
from cytoray.tasks.learning import Learning, open_initial, run_learning
from cytoray.tasks.messages import CellsRequest, CellsResponse, Message, Request, Response
from cytoray.tasks.spec import Lazy, TaskSpec, TaskStage
from cytoray.tokens.collator import PackedMinibatch, widen
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.export import ExportSpec
from cytoray.training.initial import InitialModel
from cytoray.training.objectives import Amounts, measure_embedding
from cytoray.training.trainer import TrainingSpec

GENES = [f"GENE{number:02d}" for number in range(40)]


class CountsRequest(CellsRequest):
    scale: float = Field(1.0, description="Factor of each sum.")


class CountedCell(Message):
    id: str | None
    total: float | None


class CountsResponse(CellsResponse):
    cells: list[CountedCell]


class LearnConfig(FromModelConfig):
    kind: Literal["learn-counts"] = Field("learn-counts", description="Which stage this file configures.")
    power: float = Field(1.0, description="Of the sum.")


class CountConfig(Config):
    kind: Literal["count"] = Field("count", description="Which stage this file configures.")
    numbers: tuple[int, ...] = Field(description="Numbers to add.")


@dataclass(frozen=True)
class TotalsMinibatch:
    cells: PackedMinibatch
    totals: torch.Tensor  # float32 (B,)

    def to(self, device: Any) -> TotalsMinibatch:
        return TotalsMinibatch(self.cells.to(device), self.totals.to(device))


@dataclass(frozen=True)
class TotalsObjective:
    """The logarithm of a cell's number of genes, in the first dimension of its embedding."""

    pad_id: int
    power: float
    scope: Literal["cell"] = "cell"

    def prepare(self, batch: StepBatch) -> TotalsMinibatch:
        cells = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        totals = np.log1p(batch.lengths.astype(np.float32)) ** self.power
        return TotalsMinibatch(cells.packed(), torch.from_numpy(totals))

    def weights(self, step: int) -> dict[str, float]:
        return {"totals": 1.0}

    def counts(self, batch: StepBatch) -> dict[str, int]:
        return {"totals": batch.num_cells}

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        return measure_embedding(model, batch)

    def losses(self, model: ScGPT, prepared: TotalsMinibatch, step: int) -> dict[str, SummedLoss]:
        return self.judge(model, prepared)

    def judge(self, model: ScGPT, prepared: TotalsMinibatch) -> dict[str, SummedLoss]:
        error = model.embed(prepared.cells)[:, 0].float() - prepared.totals
        return {"totals": SummedLoss(error.square().sum(), torch.tensor(len(error)))}


def prepare_totals(config: LearnConfig) -> Learning:
    opened = open_initial(config)
    base = opened.bundle
    config = config.model_copy(update={"tokenizer": base.tokenizer_config})
    options = StreamOptions(config.tokenizer, config.train.seed, config.train.cells_per_step)
    training = TrainingSpec(
        config,
        open_stream(config.store, config.corpus, options),
        base.model.config,
        base.vocabulary.pad_id,
        TotalsObjective(base.vocabulary.pad_id, config.power),
        InitialModel(opened.uri, opened.digest, base.model.state_dict()),
    )
    return Learning(training, ExportSpec(base.model.config, base.vocabulary, parent=opened.digest))


def learn_totals(config: LearnConfig) -> dict[str, Any]:
    return run_learning(config, prepare_totals)


def count(config: CountConfig) -> dict[str, Any]:
    return {"total": sum(config.numbers)}


def sum_cells(model: ServedModel, questions: Sequence[Question[CountsRequest]]) -> list[np.ndarray]:
    lengths = [question.cells.num_genes_per_cell for question in questions]
    cells = [np.repeat(np.arange(len(length)), length) for length in lengths]
    return [
        np.bincount(places, question.cells.values, minlength=len(length))
        for places, question, length in zip(cells, questions, lengths, strict=True)
    ]


def answer_counts(question: Question[CountsRequest], totals: np.ndarray) -> dict[str, Any]:
    empty = np.flatnonzero(question.cells.num_genes_per_cell == 0)
    return {"cells": question.rows({"total": (totals * question.request.scale).tolist()}, missing=empty.tolist())}


def read_counts(answers: Answers) -> np.ndarray:
    return np.array([np.nan if cell["total"] is None else cell["total"] for cell in answers.cells])


COUNTS = Endpoint(
    name="counts",
    description="Add up the counts of each cell.",
    request=CountsRequest,
    response=CountsResponse,
    run=sum_cells,
    answer=answer_counts,
    read=read_counts,
)


class NamesRequest(Request):
    prefix: str


class NamesResponse(Response):
    names: list[str]


def refuse_unlabelled(model: ServedModel) -> None:
    if not model.bundle.labels:
        raise RequestError("This model has no names.", remedy="Serve one with names.", code="wrong_model")


NAMES = Endpoint(
    name="names",
    description="List genes of the vocabulary.",
    request=NamesRequest,
    response=NamesResponse,
    run=lambda model, questions: [
        [name for name in model.bundle.vocabulary.tokens if name.startswith(question.request.prefix)]
        for question in questions
    ],
    answer=lambda question, names: {"names": names},
    check=refuse_unlabelled,
    read=lambda answers: answers.first["names"],
)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows in the table: a task with stages and an endpoint, and one with an endpoint that is not about cells."""
    here = __name__
    learning = TaskStage("learn-counts", "Learn.", Lazy(here, "LearnConfig"), run=Lazy(here, "learn_totals"))
    counting = TaskStage("count", "Count.", Lazy(here, "CountConfig"), run=Lazy(here, "count"))
    toy = TaskSpec("counts", learning=learning, evaluation=counting, endpoint=Lazy(here, "COUNTS"))
    monkeypatch.setitem(TASKS, "counts", toy)
    monkeypatch.setitem(TASKS, "names", TaskSpec("names", endpoint=Lazy(here, "NAMES")))


def test_it_is_served_and_published(http: Any, make_counts: Any, as_request: Any) -> None:
    counts = make_counts(3)
    request = as_request(counts, scale=2.0)
    request["cells"].append({"id": "none", "i": [], "v": []})
    response = http.post("/v1/counts", json=request)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["genes"] == {"matched": 40, "total": 40, "unknown": []}
    assert [warning["indices"] for warning in answer["warnings"]] == [[3]]
    totals = [cell["total"] for cell in answer["cells"]]
    np.testing.assert_allclose(totals[:3], 2 * counts.toarray().sum(axis=1), rtol=1e-6)
    assert answer["cells"][3] == {"id": "none", "total": None}
    published = http.get("/openapi.json").json()
    assert {"/v1/embed", "/v1/annotate", "/v1/counts", "/v1/names"} <= published["paths"].keys()
    operation = published["paths"]["/v1/counts"]["post"]
    assert operation["description"] == "Add up the counts of each cell."
    for part, instance in ((operation["requestBody"], request), (operation["responses"]["200"], answer)):
        schema = {**part["content"]["application/json"]["schema"], "components": published["components"]}
        jsonschema.validate(instance, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**instance, "surplus": 1}, schema)


def test_its_requests_are_checked_like_all_others(http: Any, make_counts: Any, as_request: Any) -> None:
    wrong = http.post("/v1/counts", json=as_request(make_counts(1), scale="two"))
    assert (wrong.status_code, wrong.json()["pointer"]) == (400, "/scale")
    many = http.post("/v1/counts", json=as_request(make_counts(17)))
    assert (many.status_code, many.json()["code"]) == (413, "use_jobs")
    assert http.post("/v1/embed", json=as_request(make_counts(1), scale=2.0)).status_code == 400


def test_it_shares_the_model_with_the_other_endpoints(
    bundle: Any, build_service: Any, runner: asyncio.Runner, make_counts: Any, as_request: Any
) -> None:
    service = build_service(bundle)
    sizes = {"counts": (2, 3), "embed": (1, 4), "annotate": (5, 2)}

    async def ask() -> dict[tuple[str, int], Any]:
        asked = [(name, size) for name, both in sizes.items() for size in both]
        bodies = [json.dumps(as_request(make_counts(size))).encode() for _, size in asked]
        replies = await asyncio.gather(
            *(service.answer(find_endpoint(name), body) for (name, _), body in zip(asked, bodies, strict=True))
        )
        return {key: json.loads(reply.content)["cells"] for key, reply in zip(asked, replies, strict=True)}

    found = runner.run(ask())
    runner.run(service.close())
    assert {key: len(cells) for key, cells in found.items()} == {key: key[1] for key in found}
    for key, cells in found.items():
        own = {"counts": "total", "embed": "embedding", "annotate": "label"}[key[0]]
        assert all(cell[own] is not None for cell in cells)
    totals = [cell["total"] for cell in found["counts", 3]]
    np.testing.assert_allclose(totals, make_counts(3).toarray().sum(axis=1), rtol=1e-6)


def test_the_client_asks_it(bundle: Any, build_service: Any, listen: Any, make_counts: Any) -> None:
    counts = make_counts(37)
    with Client(listen(build_service(bundle)), timeout=20.0, cells_per_request=8) as client:
        totals = client.ask("counts", check_cells(GENES, counts), scale=0.5)
        np.testing.assert_allclose(totals, 0.5 * counts.toarray().sum(axis=1), rtol=1e-6)
        assert client.ask("counts", check_cells(GENES, make_counts(0))).shape == (0,)
        np.testing.assert_array_equal(client.counts(GENES, counts, scale=0.5), totals)
        assert client.ask("names", prefix="GENE3") == client.names("GENE3") == GENES[30:]
        embeddings = client.ask("embed", check_cells(GENES, counts))
        np.testing.assert_allclose(embeddings, client.embed(GENES, counts), atol=1e-6)
        with pytest.raises(RequestError, match=r"Unknown endpoint 'nothing'.*embed, annotate, .*counts, names"):
            client.ask("nothing", check_cells(GENES, counts))


def test_a_model_may_be_refused(build_bundle: Any, build_service: Any, connect: Any) -> None:
    http = connect(build_service(build_bundle(labels=())))
    response = http.post("/v1/names", json={"prefix": "GENE3"})
    assert (response.status_code, response.json()["code"]) == (409, "wrong_model")


def test_its_stages_are_configured_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_configs()["count"] is CountConfig
    file = tmp_path / "count.yaml"
    file.write_text("kind: count\nnumbers: [1, 2, 4]\n")
    assert load_stage_config(file) == CountConfig(numbers=(1, 2, 4))
    assert run_job("count", description=None, argv=["--config", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == {"total": 7}
    file.write_text("kind: count\nnumber: [1]\n")
    with pytest.raises(ConfigError, match="did you mean numbers"):
        load_stage_config(file)


def test_its_training_starts_from_any_model(tmp_path: Path) -> None:
    file = tmp_path / "learn.yaml"
    file.write_text(
        "kind: learn-counts\nstore: /data\nrun: toy\ncorpus: blood\ninitial_run: base\npower: 2\n"
        "train: {num_steps: 1}\ntracking: {uri: 'sqlite:////data/mlflow.db'}\n"
    )
    config = load_stage_config(file)
    assert isinstance(config, LearnConfig)
    assert (config.initial_uri, config.power) == ("run:base", 2.0)
    assert learning_stages().keys() >= {"pretrain", "finetune", "learn-counts"}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_it_trains_by_an_objective_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = GeneVocabulary.load_default()
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=2, feedforward_width=16, num_layers=1, dropout=0.0
    )
    torch.manual_seed(0)
    network = ScGPT(shape, pad_id=vocabulary.pad_id)
    save_bundle(ModelBundle(network, vocabulary, TokenizerConfig(max_length=41)), tmp_path / "base")
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.uniform(0.1, 2, (64, 1)), (64, 40))
    write_corpus(str(tmp_path / "store"), counts, np.arange(500, 540), {"kind": ["x"] * 64})
    file = tmp_path / "learn.yaml"
    file.write_text(
        f"kind: learn-counts\nstore: {tmp_path}/store\nrun: toy\ncorpus: cells\ninitial: {tmp_path}/base\n"
        "train: {num_steps: 12, cells_per_step: 32, checkpoint_every: 6}\noptimizer: {learning_rate: 0.01}\n"
        "workers: {num_workers: 1}\n"
        f"tracking: {{uri: 'http://127.0.0.1:9', journal_folder: {tmp_path}/journal}}\n"
    )
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    try:
        assert run_job("learn-counts", description=None, argv=["--config", str(file)]) == 0
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    told = json.loads(capsys.readouterr().out)
    assert told["last_loss"] < 0.5 * told["first_loss"]
    assert open_model(told["bundle"]).digest == told["bundle_digest"]
