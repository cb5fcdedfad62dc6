"""The run card says what a run was and reached, invents nothing, and is one page that fetches nothing."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cytoray.errors import StorageError
from cytoray.training.card import RunCard
from cytoray.training.card_page import render_page, write_card
from cytoray.training.card_plots import plot_loss_svg
from cytoray.training.card_text import percent_text, scaled_text, seconds_text

NAN = math.nan
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Text, tables by id, blocks by id and images of a page; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.blocks: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: set[str] = set()
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        attributes = dict(attrs)
        if tag == "img":
            self.images.append(attributes)
        if tag not in VOID:
            self.open.append((tag, attributes.get("id")))
        if rows := self._table():
            if tag == "tr":
                rows[-1:] = [[]] if rows[-1:] == [["new"]] else [*rows[-1:], []]
            elif tag in ("td", "th"):
                rows[-1].append("")

    def _table(self) -> list[list[str]]:
        name = next((name for tag, name in self.open if tag == "table" and name), None)
        return self.tables.setdefault(name, [["new"]]) if name else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self.open]
        if "style" in inside:
            return
        self.texts += data.split()
        for _, name in self.open:
            if name:
                self.blocks[name] = self.blocks.get(name, "") + data
        if ("td" in inside or "th" in inside) and (rows := self._table()):
            rows[-1][-1] = f"{rows[-1][-1]} {data}".strip()

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def rows(self, table: str) -> dict[str, list[str]]:
        """Rows of a table by their first cell."""
        return {row[0]: row[1:] for row in self.tables[table]}


def point(step: int, **changes: float) -> dict[str, float]:
    masked, conditioned = 60 + 600 * math.exp(-step / 60), 70 + 650 * math.exp(-step / 90)
    return {
        "step": float(step), "loss": masked + conditioned, "masked": masked, "cell_conditioned": conditioned,
        "learning_rate": 1e-4 * min(1, step / 100), "gradient_norm": 3 + 90 / step, "cells_per_s": 512 / 0.4,
        "tokens_per_s": 1.5e6, "needed_flops_per_s": 2.5e13, "data_wait_share": 0.0125,
        "checkpoint_stall_share": 0.5 if step % 100 == 0 else 0.0, "step_s": 0.4, "memory_bytes": 2e9 + step, **changes,
    }  # fmt: skip


def build_card(**changes: Any) -> RunCard:
    values: dict[str, Any] = {
        "run": "blood-small", "kind": "pretrain", "config_yaml": "run: blood-small\ntrain:\n  num_steps: 1000\n",
        "digests": {"corpus manifest": "d1935e57", "configuration": "77aa01"},
        "code": {"git revision": "0123abcd-dirty", "cytoray": "0.9.0", "torch": "2.13.0"},
        "hardware": ({"host": "n1", "cores": "16", "gpu": "H100"},) * 2 + ({"host": "n2", "cores": "8"},),
        "history": [point(step) for step in range(5, 1001, 5)],
        "validation": [
            {"step": 500.0, "masked": 63.5, "cell_conditioned": 74.25, "mean_bin": 80.0},
            {"step": 1000.0, "masked": 62.0, "cell_conditioned": 71.5, "mean_bin": 80.0},
        ],
        "scores": {
            "model": {"mse": 61.234, "mae": 5.5, "num_genes": 123_456},
            "global mean bin": {"mse": 80.0, "mae": 7.25, "num_genes": 123_456},
            "kNN in PCA space": {"mse": 73.777, "mae": 6.125, "num_genes": 123_456},
        },
        "events": ["started with 2 workers at step 0", "step 17 was skipped"],
        "totals": {"steps": 1000.0, "cells": 512_000.0, "tokens": 614_400_000.0, "seconds": 4325.0},
        "reproduce": ["git checkout 0123abcd", "cytoray pretrain --config run.yaml"],
        "mlflow_run_id": "f00f", **changes,
    }  # fmt: skip
    return RunCard(**values)


@pytest.fixture(scope="module")
def html() -> str:
    """The page of the plain card."""
    return render_page(build_card())


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_the_page_says_what_the_run_was(page):
    assert page.blocks["summary"] == (
        "Pretraining run blood-small: 1,000 steps, 512,000 cells, 614,400,000 tokens in 1 h 12 min on 3 workers. "
        "The loss went from 1,297 to 130.0. "
        "On held-out cells its mean squared error is 61.23, better than the best baseline "
        "(kNN in PCA space: 73.78; ratio 0.830)."
    )
    for words in (
        "1,000 steps", "614 M tokens", "1 h 12 min of training", "0.830 of the best baseline held out; less is better",
        "corpus manifest d1935e57", "git revision 0123abcd-dirty", "dirty: files differed", "torch 2.13.0",
        "MLflow run f00f", "step 17 was skipped",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.blocks["configuration"] == "run: blood-small\ntrain:\n  num_steps: 1000\n"
    assert page.blocks["reproduce"] == "\ngit checkout 0123abcd\ncytoray pretrain --config run.yaml\n"


def test_the_table_of_scores_sets_every_row_beside_the_best_baseline(page):
    rows = page.rows("scores")
    assert rows == {
        "": ["mean squared error", "mean absolute error", "genes", "mean squared error ÷ best baseline's"],
        "model": ["61.23", "5.500", "123,456", "0.830"],
        "global mean bin": ["80.00", "7.250", "123,456", "1.084"],
        "kNN in PCA space best baseline": ["73.78", "6.125", "123,456", "1.000"],
    }


def test_of_an_accuracy_more_is_better():
    scores = {
        "cytoray": {"accuracy": 0.8},
        "logistic regression": {"accuracy": 0.9},
        "majority class": {"accuracy": 0.3},
    }
    page = Page(render_page(build_card(kind="finetune", scores=scores)))
    assert "accuracy is 0.8000, worse than the best baseline (logistic regression: 0.9000; ratio 0.889)" in page.text
    assert "more is better" in page.text
    assert page.rows("scores")["majority class"] == ["0.3000", "0.333"]


def test_the_stability_of_a_fine_tuned_model():
    stability = {
        "1 % of genes dropped": {"labels_kept": 0.97, "median_cosine": 0.99, "num_cells": 100},
        "counts thinned to 90 %": {"labels_kept": None, "median_cosine": NAN, "num_cells": 0},
    }
    card = build_card(kind="finetune", stability=stability)
    rows = Page(render_page(card)).rows("stability")
    assert rows["1 % of genes dropped"] == ["97.0%", "0.9900", "100"]
    assert rows["counts thinned to 90 %"] == ["not measured", "not finite", "0"]
    assert card.to_json()["stability"]["counts thinned to 90 %"]["median_cosine"] is None
    assert "the run holds no cells out" in Page(render_page(build_card(kind="finetune"))).text
    assert "Stability" not in Page(render_page(build_card(kind="pretrain"))).text


def test_the_figures_of_the_run(page):
    rows = page.rows("figures")
    assert rows["cells per second"][:2] == ["1,280", "1,280"]
    assert rows["tokens per second"][0] == "1,500,000"
    assert rows["operations that the objective needs"][0] == "25 TFLOP/s"
    assert rows["time of a step"][0] == "400 ms"
    assert rows["time spent waiting for data"][0] == "1.25%"
    # One kept step in twenty was stopped for half of its time: nothing of that is in the median.
    assert rows["time stopped by checkpoints"][:2] == ["0%", "2.5%"]
    assert rows["share of the accelerators' peak (MFU)"] == ["not measured", "", ""]
    assert rows["most memory of the first worker"][0] == "2 GB"


def test_the_mean_of_a_rate_is_over_time():
    history = [point(1, cells_per_s=100.0, step_s=9.0), point(2, cells_per_s=900.0, step_s=1.0)]
    assert Page(render_page(build_card(history=history))).rows("figures")["cells per second"][1] == "180"


def test_workers_alike_are_one_row(page):
    assert page.tables["hardware"] == [
        ["workers", "host", "cores", "gpu"], ["2", "n1", "16", "H100"], ["1", "n2", "8", "-"],
    ]  # fmt: skip


def test_the_best_checkpoint_is_marked_and_old_ones_are_left_to_the_json():
    validation = [{"step": 100.0 * n, "masked": 50.0 if n == 3 else 60.0 + n} for n in range(1, 31)]
    page = Page(render_page(build_card(validation=validation)))
    table = page.tables["checkpoints"]
    assert table[0] == ["step", "masked"]
    assert table[1] == ["300 best", "50.00"]
    assert [row[0] for row in table[2:]] == [f"{100 * n:,}" for n in range(19, 31)]
    assert "and 17 earlier ones in card.json" in page.text


def test_the_page_fetches_nothing(html, page):
    assert page.images[0]["src"] == plot_loss_svg(build_card().history, build_card().validation)
    assert [image["alt"] for image in page.images] == ["Loss", "Learning rate", "Gradient norm", "Throughput", "Waits"]
    for image in page.images:
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(data)
    assert not re.search(r'(src|href|action)\s*=\s*"?(?!"?data:)', html)
    assert not page.tags & {"script", "link", "iframe", "a", "form"}
    assert "@import" not in html
    assert "url(" not in html


def loss_svg(card: RunCard) -> str:
    return base64.b64decode(plot_loss_svg(card.history, card.validation).partition(",")[2]).decode()


def test_the_losses_are_drawn_with_their_parts_and_the_mean_bin():
    svg = loss_svg(build_card())
    for words in ("all together", ">masked<", ">masked, held out<", ">cell_conditioned, held out<", ">mean bin<"):
        assert words in svg, words
    assert "gradient_norm" not in svg
    svg = loss_svg(build_card(validation=[]))
    assert "held out" not in svg
    assert "mean bin" not in svg
    one = [{"step": 1.0, "loss": 1.5, "classification": 1.5}, {"step": 2.0, "loss": 1.0, "classification": 1.0}]
    svg = loss_svg(build_card(history=one, validation=[{"step": 2.0, "classification": 1.1, "accuracy": 0.7}]))
    assert "classification, held out" in svg
    assert "all together" not in svg  # it would lie under its only part
    assert "accuracy" not in svg


def test_equal_cards_are_equal_files(tmp_path):
    first, second = (write_card(build_card(), tmp_path / name) for name in "ab")
    assert {name: path.read_bytes() for name, path in first.items()} == {
        name: path.read_bytes() for name, path in second.items()
    }


def test_names_are_no_markup():
    evil = "<script>alert(1)</script> & $x^$"
    card = build_card(
        run=evil, kind=evil, config_yaml=evil, digests={evil: evil}, code={evil: evil}, hardware=({evil: evil},),
        history=[point(1, **{evil: 3.0})], validation=[{"step": 1.0, evil: 3.0}], reproduce=[evil],
        scores={evil: {evil: 1.0}, f"{evil}2": {evil: 2.0}}, events=[evil], mlflow_run_id=evil,
    )  # fmt: skip
    html = render_page(card)
    assert "<script" not in html
    page = Page(html)
    assert page.text.count(evil) >= 16
    assert page.blocks["configuration"] == evil
    assert "<script" not in loss_svg(card)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"history": [], "validation": [], "scores": {}}, ["It was not measured on held-out cells.", "not measured"]),
        ({"history": [point(7)]}, ["The loss was 1,265."]),
        ({"history": [point(5), point(10, loss=NAN, masked=NAN), point(15)]}, ["The loss went from"]),
        ({"history": [dict.fromkeys(point(1), NAN)] * 3, "validation": [{"step": 5.0, "masked": NAN}]}, ["not finite"]),
        ({"history": [point(5, loss=math.inf, masked=-1.0, gradient_norm=0.0, cells_per_s=0.0, step_s=0.0)]}, []),
        ({"scores": {}}, ["masked loss on held-out cells was 62.00, 0.775 times that of the mean bin (80.00)"]),
        ({"scores": {"model": {"mse": NAN}, "mean": {"mse": 3.0}}}, ["not finite", "held-out cells was 62"]),
        ({"scores": {"model": {"mse": 3.0}}}, ["held-out cells was 62"]),
        ({"scores": {"model": {"mse": 3.0}, "a": {"mae": 1.0}, "b": {"mse": 4.0}}}, ["a not measured 1.000 -"]),
        (
            {"scores": {"model": {"mse": 3.0}, "mean": {"mse": 0.0}}},
            ["worse than the best baseline (mean: 0; ratio -)"],
        ),
        ({"totals": {}}, ["Pretraining run blood-small: steps not measured on 3 workers"]),
        ({"totals": {"steps": 1.0, "seconds": NAN}, "hardware": ()}, ["1 step in not finite.", "Not recorded."]),
        ({"events": []}, ["None were noted."]),
        ({"events": ["again"] * 130}, ["and 30 more in card.json"]),
        ({"reproduce": [], "mlflow_run_id": None, "code": {}, "digests": {}}, ["MLflow run none"]),
    ],
)
def test_what_is_missing_is_not_made_up(changes, words, tmp_path):
    card = build_card(**changes)
    files = write_card(card, tmp_path)
    text = Page(files["card.html"].read_text(encoding="utf-8")).text
    assert re.search(r"\bnan\b|\binf\b|\bNone\b(?! were noted)", text) is None
    for expected in words:
        assert expected in text, expected
    assert size_of_png(files["loss.png"]) == (1200, 630)
    json.loads(files["card.json"].read_text(encoding="utf-8"), parse_constant=pytest.fail)


def size_of_png(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(data) > 5000
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_three_files_are_written_whole(tmp_path):
    card = build_card(history=[point(5, gradient_norm=NAN)])
    files = write_card(card, tmp_path / "runs" / "card #1")
    assert files == {name: tmp_path / "runs" / "card #1" / name for name in ("card.html", "loss.png", "card.json")}
    assert {path.name for path in (tmp_path / "runs" / "card #1").iterdir()} == set(files)
    assert files["card.html"].read_text(encoding="utf-8") == render_page(card)
    data = json.loads(files["card.json"].read_text(encoding="utf-8"))
    assert data["format"] == 1
    assert data["history"][0]["gradient_norm"] is None
    assert data["scores"] == card.scores
    assert {field.name for field in dataclasses.fields(RunCard)} <= data.keys()
    write_card(build_card(run="second"), tmp_path / "runs" / "card #1")
    assert "run second" in files["card.html"].read_text(encoding="utf-8")


def test_nothing_is_written_where_there_is_no_room(tmp_path):
    (tmp_path / "card").write_text("a file")
    with pytest.raises(StorageError):
        write_card(build_card(), tmp_path / "card")
    assert (tmp_path / "card").read_text() == "a file"


def test_numbers_with_units():
    assert [seconds_text(value) for value in (0.0123, 2.5, 99.0, 250.0)] == ["12.3 ms", "2.5 s", "99 s", "4 min 10 s"]
    assert [percent_text(share) for share in (0.0, 0.000123, 0.4567, 1.0)] == ["0%", "0.0123%", "45.7%", "100.0%"]
    assert [scaled_text(value, "B") for value in (12.0, 1234.0, 5e12)] == ["12 B", "1.23 kB", "5 TB"]
