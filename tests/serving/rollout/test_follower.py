"""An alias that moves is a rollout; whatever is wrong with the new version, the old one keeps serving."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cytoray.errors import DigestError, RegistryError
from cytoray.model.bundle import ModelBundle
from cytoray.registry.artifacts import RegisteredVersion
from cytoray.registry.last_good import pin_or_recall
from cytoray.registry.models import GOLDEN_TAG
from cytoray.registry.pinning import pin_model
from cytoray.registry.promotion import roll_back
from cytoray.serving.hosting.loading import load_service
from cytoray.serving.rollout.slot import ModelSlot
from cytoray.tasks import find_endpoint
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking.server import connect as connect_to_mlflow

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
EMBED = find_endpoint("embed")


def look(slot: ModelSlot) -> None:
    """Have a slot look at its alias once."""
    assert slot.follower is not None
    slot.follower.check()


def embed(slot: ModelSlot, runner: asyncio.Runner, request: dict[str, Any]) -> tuple[str, Any]:
    """Return the version that answers, and its embeddings."""
    answer = json.loads(runner.run(slot.answer(EMBED, json.dumps(request).encode())).content)
    return answer["model"]["version"], np.array([cell["embedding"] for cell in answer["cells"]])


def test_a_moved_alias_is_served_and_a_rollback_loads_nothing(
    publish: Any, follow: Any, offline: Any, runner: Any, tracking: Any, make_counts: Any, as_request: Any
) -> None:
    loaded = []

    def load(args: Any, pinned: Any) -> Any:
        loaded.append(pinned.version)
        return load_service(args, pinned)

    counts = make_counts(3)
    publish(1)
    slot = follow(load=load)
    publish(2)
    look(slot)
    for number in (2, 1, 2):
        version, embeddings = embed(slot, runner, as_request(counts))
        assert version == str(number)
        np.testing.assert_allclose(embeddings, offline(number, counts), atol=1e-5)
        roll_back("tiny", tracking=tracking)
        look(slot)
    assert loaded == ["1", "2"]
    status = slot.status()
    assert (status.degraded, status.refused, status.swaps) == (None, None, {"swapped": 1, "rolled_back": 3})
    assert (status.model.version, status.previous.version, status.follows) == ("1", "2", "models:/tiny@champion")


@dataclass
class Broken:
    """A version that must not serve."""

    result: str  # in the metrics
    bundle: Callable[[ModelBundle], ModelBundle] = lambda bundle: bundle
    spoil: Callable[[Path], None] = lambda folder: None  # the stored files
    options: dict[str, Any] = field(default_factory=dict)
    golden: str | None = None


def with_nan(bundle: ModelBundle) -> ModelBundle:
    with torch.no_grad():
        next(bundle.model.parameters()).fill_(float("nan"))
    return bundle


def with_other_genes(bundle: ModelBundle) -> ModelBundle:
    tokens = [token.replace("GENE", "OTHER") for token in bundle.vocabulary.tokens]
    return replace(bundle, vocabulary=GeneVocabulary(tokens))


def flip(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")


def of_the_future(folder: Path) -> None:
    listing = json.loads((folder / "digests.json").read_text())
    text = json.dumps(listing | {"format": 9}, sort_keys=True, separators=(",", ":"))
    (folder / "digests.json").write_text(text)


BROKEN = {
    "another vocabulary": Broken("vocabulary", bundle=with_other_genes),
    "NaN weights": Broken("model", bundle=with_nan),
    "a missing file": Broken("digest", spoil=lambda folder: (folder / "vocab.json").unlink()),
    "no files": Broken("registry_unavailable", spoil=shutil.rmtree),
    "changed weights": Broken("digest", spoil=flip),
    "an unknown format": Broken("model", spoil=of_the_future),
    "other golden cells": Broken("golden", golden="of version 1"),
    "unreadable golden cells": Broken("golden", golden="{"),
    "too little memory": Broken("memory", options={"memory_margin_bytes": 2**60}),
    "no labels": Broken("endpoints"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_version_never_serves(
    kind: str,
    publish: Any,
    follow: Any,
    change_bundle: Any,
    tracking: Any,
    runner: Any,
    make_counts: Any,
    as_request: Any,
) -> None:
    broken = BROKEN[kind]
    publish(1)
    slot = follow(**broken.options)
    labels = () if broken.result == "endpoints" else ("B", "T", "NK")
    version: RegisteredVersion = publish(2, bundle=broken.bundle(change_bundle(2, labels=labels)))
    broken.spoil(Path(version.source_uri.removeprefix("file://")))
    client = connect_to_mlflow(tracking.uri)
    if broken.golden is not None:
        of_first = client.get_model_version("tiny", "1").tags[GOLDEN_TAG]
        client.set_model_version_tag("tiny", "2", GOLDEN_TAG, of_first if broken.golden[0] == "o" else broken.golden)
    look(slot)
    look(slot)  # too early for a second attempt
    status = slot.status()
    assert (status.model.version, status.refused.version, status.swaps) == ("1", "2", {broken.result: 1})
    assert "models:/tiny@champion names version 2, which is not served:" in status.degraded
    assert embed(slot, runner, as_request(make_counts(1)))[0] == "1"
    slot.follower.poke()
    look(slot)
    assert slot.status().refused.attempts == 2
    roll_back("tiny", tracking=tracking)
    look(slot)
    assert (slot.model.version, slot.status().degraded) == ("1", None)


def test_a_version_that_takes_too_long_is_discarded(publish: Any, follow: Any) -> None:
    release, loaded = threading.Event(), []

    def load(args: Any, pinned: Any) -> Any:
        if pinned.version == "2":
            assert release.wait(20)
        loaded.append(load_service(args, pinned))
        return loaded[-1]

    publish(1)
    slot = follow(load=load, load_timeout_s=0.05)
    publish(2)
    look(slot)
    assert (slot.model.version, slot.status().swaps) == ("1", {"timeout": 1})
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("cytoray-version"):
            thread.join(20)
    assert slot.model.version == "1"
    with pytest.raises(Exception, match="has stopped"):
        loaded[1].check_ready()


def test_a_rollback_may_lead_to_a_version_that_answers_less(
    publish: Any, follow: Any, change_bundle: Any, tracking: Any
) -> None:
    publish(1, bundle=change_bundle(1, labels=()))
    publish(2)
    slot = follow()  # it has never seen version 1
    roll_back("tiny", tracking=tracking)
    look(slot)
    assert slot.model.version == "1"


def test_while_mlflow_is_away_the_version_stays_and_a_replica_starts_with_it(
    publish: Any, follow: Any, args: Any, tmp_path: Path, caplog: Any
) -> None:
    publish(1)
    at_deployment = pin_model(args.model_uri, sources=args.sources())
    slot = follow()
    publish(2)
    look(slot)
    database = tmp_path / "mlflow.db"
    database.rename(tmp_path / "away.db")
    database.mkdir()
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        look(slot)
    assert slot.model.version == "2"
    assert "cannot be used" in slot.status().degraded
    assert len([record for record in caplog.records if "keeps serving" in record.message]) == 1
    started = follow(pinned=at_deployment)  # a replica of the same deployment
    assert started.model.version == "2"
    assert pin_or_recall(args.model_uri, sources=args.sources()).version == "2"  # another deployment
    database.rmdir()
    (tmp_path / "away.db").rename(database)
    publish(3)
    for each in (slot, started):
        look(each)
        assert (each.model.version, each.status().degraded) == ("3", None)
    with pytest.raises(RegistryError, match="Unknown model version"):
        pin_or_recall("models:/tiny@other", sources=args.sources())


def test_a_replica_that_starts_takes_the_alias_of_now_unless_that_version_is_broken(
    publish: Any, follow: Any, args: Any
) -> None:
    publish(1)
    at_deployment = pin_model(args.model_uri, sources=args.sources())
    second = publish(2)
    assert follow(pinned=at_deployment).model.version == "2"
    third = publish(3)
    flip(Path(third.source_uri.removeprefix("file://")))
    slot = follow(pinned=at_deployment)
    assert slot.model.version == "2"
    assert (slot.status().refused.version, slot.status().refused.result) == ("3", "digest")
    shutil.rmtree(Path(args.cache_folder) / "last-good")
    flip(Path(second.source_uri.removeprefix("file://")))
    assert follow(pinned=at_deployment).model.version == "1"


def test_a_model_that_is_not_named_by_an_alias_never_moves(publish: Any, args: Any, runner: Any) -> None:
    from cytoray.serving.rollout.building import build_slot

    publish(1)
    fixed = args.model_copy(update={"model_uri": "models:/tiny/1"})
    slot = build_slot(fixed, pin_model("models:/tiny/1", sources=args.sources()), load=load_service)
    publish(2)
    assert slot.follower is None
    assert (slot.status().model.version, slot.status().follows) == ("1", None)
    runner.run(slot.close())


def test_a_first_version_that_cannot_be_served_is_an_error(publish: Any, follow: Any) -> None:
    version = publish(1)
    flip(Path(version.source_uri.removeprefix("file://")))
    with pytest.raises(DigestError):
        follow()


def test_polling_and_a_notice_find_a_moved_alias(publish: Any, follow: Any) -> None:
    from cytoray.serving.rollout.notice import poke_followers

    publish(1)
    slow, fast = follow(), follow(poll_s=0.05)
    publish(2)
    assert poke_followers("other") == 0
    assert poke_followers("tiny") == 2
    done = threading.Event()
    for slot in (slow, fast):
        for _ in range(2000):
            if slot.model.version == "2":
                break
            done.wait(0.01)
        assert slot.model.version == "2"
    publish(3)
    for _ in range(2000):
        if fast.model.version == "3":
            break
        done.wait(0.01)
    assert (slow.model.version, fast.model.version) == ("2", "3")
