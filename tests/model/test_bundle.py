"""A bundle comes back as it was saved, and no changed byte gets through."""

from __future__ import annotations

import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from cytoray.errors import ConflictError, CytorayError, DigestError, ModelError, NotFoundError
from cytoray.model.bundle import Attachment, Conditions, ModelBundle, compute_digest, load_bundle, save_bundle
from cytoray.model.transformer import ScGPT
from cytoray.tokens.inference import DRAWN, InferenceConfig

FILES = {
    "model.safetensors",
    "config.json",
    "vocab.json",
    "preprocessing.json",
    "labels.json",
    "lineage.json",
    "digests.json",
}


def _reseal(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and its digest, as somebody who means it would."""
    (folder / name).write_bytes(data)
    listing = json.loads((folder / "digests.json").read_bytes())
    listing["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / "digests.json").write_bytes(json.dumps(listing, sort_keys=True, separators=(",", ":")).encode())


@pytest.fixture
def saved(bundle: ModelBundle, tmp_path: Path) -> Path:
    save_bundle(bundle, tmp_path / "saved")
    return tmp_path / "saved"


def test_round_trip_gives_back_everything(bundle: ModelBundle, tmp_path: Path) -> None:
    digest = save_bundle(bundle, tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    loaded = load_bundle(tmp_path / "saved")
    assert loaded.digest == bundle.digest == digest
    assert digest == hashlib.sha256((tmp_path / "saved" / "digests.json").read_bytes()).hexdigest()
    assert loaded.model.config == bundle.model.config
    assert loaded.tokenizer_config == bundle.tokenizer_config
    assert (loaded.labels, loaded.lineage) == (bundle.labels, bundle.lineage)
    assert loaded.vocabulary == bundle.vocabulary
    assert not loaded.model.training
    want, got = bundle.model.state_dict(), loaded.model.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_bundle_that_records_no_inference_draws_as_before_and_keeps_its_digest(saved: Path, tmp_path: Path) -> None:
    assert load_bundle(saved).inference == InferenceConfig()
    preprocessing = json.loads((saved / "preprocessing.json").read_bytes())
    assert preprocessing.pop("inference") == {"mode": "by_gene", "max_length": 8192}
    older = json.dumps(preprocessing, sort_keys=True, separators=(",", ":")).encode()
    _reseal(saved, "preprocessing.json", older)
    loaded = load_bundle(saved)
    assert loaded.inference == DRAWN
    assert save_bundle(loaded, tmp_path / "again") == loaded.digest


def test_loaded_model_can_be_trained(saved: Path) -> None:
    model = load_bundle(saved).model
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.decoder.fc[0].weight.detach().clone()
    model.decoder(torch.ones(1, 1, 16)).value.sum().backward()
    optimizer.step()
    assert not torch.equal(model.decoder.fc[0].weight, before)


def test_equal_content_has_equal_bytes(bundle: ModelBundle, saved: Path, tmp_path: Path) -> None:
    again = load_bundle(saved)
    again.lineage = dict(reversed(again.lineage.items()))
    assert save_bundle(again, tmp_path / "again") == bundle.digest
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_other_content_has_another_digest(bundle: ModelBundle, saved: Path, tmp_path: Path) -> None:
    first = bundle.digest
    bundle.lineage["run"] = "another run"
    assert save_bundle(bundle, tmp_path / "other") != first


def test_nothing_is_overwritten_or_left_behind(bundle: ModelBundle, saved: Path, tmp_path: Path) -> None:
    before = (saved / "digests.json").read_bytes()
    bundle.lineage["run"] = "another run"
    with pytest.raises(ConflictError, match="already exists"):
        save_bundle(bundle, saved)
    assert (saved / "digests.json").read_bytes() == before
    bundle.lineage["number"] = float("nan")  # type: ignore[assignment]
    with pytest.raises(ValueError, match="JSON"):
        save_bundle(bundle, tmp_path / "broken")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_disk_that_fills_up_leaves_nothing_behind(
    bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def fail_on_weights(path: Path, data: bytes) -> int:
        if path.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fail_on_weights)
    with pytest.raises(OSError, match="No space"):
        save_bundle(bundle, tmp_path / "full")
    assert list(tmp_path.iterdir()) == []
    assert bundle.digest is None


def test_reduced_precision_is_stored_as_single(
    build_model: Callable[..., ScGPT], bundle: ModelBundle, tmp_path: Path
) -> None:
    bundle.model = build_model(num_labels=3, dtype=torch.bfloat16)
    save_bundle(bundle, tmp_path / "half")
    stored = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_flipped_byte_is_found(saved: Path, name: str) -> None:
    data = (saved / name).read_bytes()
    places = np.unique(np.linspace(0, len(data) - 1, 40).astype(int))
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        (saved / name).write_bytes(flipped)
        with pytest.raises(CytorayError) as caught:
            load_bundle(saved)
        assert isinstance(caught.value, DigestError | ModelError)
        if name != "digests.json":
            assert caught.value.details == {
                "file": name,
                "expected": hashlib.sha256(data).hexdigest(),
                "seen": hashlib.sha256(flipped).hexdigest(),
            }


def test_listing_must_be_the_bytes_that_were_written(saved: Path) -> None:
    with (saved / "digests.json").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(DigestError, match=r"digests\.json was changed"):
        load_bundle(saved)


def test_swapped_labels_are_refused(saved: Path) -> None:
    (saved / "labels.json").write_bytes(b'["T","B","NK"]')
    with pytest.raises(DigestError, match=r"labels\.json"):
        load_bundle(saved)


def test_nothing_is_parsed_before_all_is_verified(saved: Path) -> None:
    _reseal(saved, "config.json", b"not json")
    with (saved / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DigestError, match=r"model\.safetensors"):
        load_bundle(saved)


@pytest.mark.parametrize("name", sorted(FILES - {"digests.json"}))
def test_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(DigestError) as caught:
        load_bundle(saved)
    assert caught.value.details == {"missing": [name], "extra": []}


def test_unlisted_file_is_refused(saved: Path) -> None:
    (saved / "best_model.pt").write_bytes(b"payload")
    with pytest.raises(DigestError, match=r"best_model\.pt"):
        load_bundle(saved)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a model bundle"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"digests\.json"):
        load_bundle(tmp_path)


def test_listing_cannot_point_elsewhere(saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "labels.json", tmp_path / "labels.json")
    listing = json.loads((saved / "digests.json").read_bytes())
    listing["files"]["../labels.json"] = listing["files"].pop("labels.json")
    (saved / "digests.json").write_bytes(json.dumps(listing, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(DigestError, match="does not list the files"):
        load_bundle(saved)


def _change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes()) | changes
    _reseal(folder, "config.json", json.dumps(config).encode())


def test_tensor_of_another_shape_is_named_with_both_shapes(saved: Path) -> None:
    _change_config(saved, feedforward_width=32)
    with pytest.raises(ModelError) as caught:
        load_bundle(saved)
    assert caught.value.details["tensor"] == "transformer_encoder.layers.0.linear1.bias"
    assert "(24,)" in str(caught.value)
    assert "(32,)" in str(caught.value)


def test_missing_and_unexpected_tensors_are_named(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    tensors["surplus"] = tensors.pop("mvc_decoder.W.weight")
    _reseal(saved, "model.safetensors", safetensors.torch.save(tensors))
    with pytest.raises(ModelError) as caught:
        load_bundle(saved)
    assert caught.value.details == {"missing": ["mvc_decoder.W.weight"], "unexpected": ["surplus"]}


def test_tensors_of_another_type_are_refused(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    tensors["mvc_decoder.W.weight"] = tensors["mvc_decoder.W.weight"].half()
    _reseal(saved, "model.safetensors", safetensors.torch.save(tensors))
    with pytest.raises(ModelError, match=r"mvc_decoder\.W\.weight is torch\.float16"):
        load_bundle(saved)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config.json", b'{"width": "wide"}'),
        ("config.json", b"[]"),
        ("labels.json", b'["B", "T", 3]'),
        ("lineage.json", b'{"run": 7}'),
        ("preprocessing.json", b'{"surprise": 1}'),
        ("vocab.json", b"[1, 2]"),
        ("model.safetensors", b"\x80\x04not safetensors"),
        ("config.json", b"\xff\xfe"),
    ],
)
def test_intact_but_wrong_content_names_its_file(saved: Path, name: str, data: bytes) -> None:
    _reseal(saved, name, data)
    with pytest.raises(ModelError):
        load_bundle(saved)


def test_labels_and_vocabulary_must_fit_the_model(bundle: ModelBundle) -> None:
    with pytest.raises(ModelError, match="3 labels, 2 names"):
        ModelBundle(bundle.model, bundle.vocabulary, bundle.tokenizer_config, ("B", "T"))
    with pytest.raises(ModelError, match="2 distinct"):
        ModelBundle(bundle.model, bundle.vocabulary, bundle.tokenizer_config, ("B", "T", "T"))
    smaller = type(bundle.vocabulary)(["GENE00", "<pad>", "<cls>", "<eoc>"])
    with pytest.raises(ModelError, match="4 tokens, the model has 63"):
        ModelBundle(bundle.model, smaller, bundle.tokenizer_config, bundle.labels)


def test_loading_draws_no_random_numbers(saved: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_bundle(saved)
    assert torch.equal(torch.get_rng_state(), before)


GOLDEN = Path(__file__).parent / "format-1-bundle"  # saved by cytoray before there was a format 2
CONDITIONS = Conditions(
    task="annotation",
    columns={"cell type": ("T", "B", "NK"), "batch": ("2", "1")},
    features={"protein": ("CD3", "CD19")},
    panel=("GENE05", "GENE01"),
)


@pytest.fixture
def attached(bundle: ModelBundle, tmp_path: Path) -> Path:
    """A bundle with conditions, an attachment given as bytes and one given as a file."""
    (tmp_path / "built.faiss").write_bytes(bytes(range(256)) * 100)
    bundle.conditions = CONDITIONS
    bundle.attachments = {
        "index.faiss": Attachment(tmp_path / "built.faiss"),
        "table.json": Attachment(b'{"donors": 3}'),
    }
    save_bundle(bundle, tmp_path / "saved")
    return tmp_path / "saved"


def test_a_bundle_of_format_1_loads_and_is_saved_with_the_same_bytes(tmp_path: Path) -> None:
    digest = "cb1ce33a496efb48a6d4954003e8b7c58622558c7bef8efba249c962c29b3700"
    loaded = load_bundle(GOLDEN)
    assert (loaded.digest, loaded.labels, loaded.conditions, dict(loaded.attachments)) == (digest, ("T", "B"), None, {})
    assert compute_digest(loaded) == digest
    assert save_bundle(loaded, tmp_path / "again") == digest
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_conditions_and_attachments_come_back(bundle: ModelBundle, attached: Path, tmp_path: Path) -> None:
    assert json.loads((attached / "digests.json").read_bytes())["format"] == 2
    loaded = load_bundle(attached)
    assert loaded.conditions == CONDITIONS
    assert list(loaded.conditions.columns["batch"]) == ["2", "1"], "the order of the codes"
    assert loaded.attachments["index.faiss"].read() == bytes(range(256)) * 100
    assert loaded.attachments["table.json"].path.read_bytes() == b'{"donors": 3}'
    assert loaded.digest == bundle.digest == compute_digest(bundle) == compute_digest(loaded)
    assert save_bundle(loaded, tmp_path / "again") == bundle.digest
    assert sorted(p.name for p in (tmp_path / "again").rglob("*")) == sorted(p.name for p in attached.rglob("*"))


def test_only_what_is_there_is_listed(bundle: ModelBundle, tmp_path: Path) -> None:
    bundle.conditions = CONDITIONS
    digest = save_bundle(bundle, tmp_path / "conditions")
    assert load_bundle(tmp_path / "conditions").conditions == CONDITIONS
    bundle.conditions, bundle.attachments = None, {"a.json": Attachment(b"{}")}
    assert save_bundle(bundle, tmp_path / "attachment") != digest
    assert load_bundle(tmp_path / "attachment").attachments["a.json"].read() == b"{}"


@pytest.mark.parametrize("name", ["attachments/index.faiss", "attachments/table.json", "conditions.json"])
def test_changed_or_missing_parts_of_format_2_are_named(attached: Path, name: str) -> None:
    data = bytearray((attached / name).read_bytes())
    data[len(data) // 2] ^= 1
    (attached / name).write_bytes(data)
    with pytest.raises(DigestError, match=name) as caught:
        load_bundle(attached)
    assert caught.value.details["file"] == name
    (attached / name).unlink()
    with pytest.raises(DigestError) as caught:
        load_bundle(attached)
    assert caught.value.details == {"missing": [name], "extra": []}


@pytest.mark.parametrize(
    "name", ["attachments/other.faiss", "attachments/deeper/index.faiss", "other/a.json", "a.json"]
)
def test_files_that_are_not_listed_are_refused(attached: Path, name: str) -> None:
    (attached / name).parent.mkdir(exist_ok=True)
    (attached / name).write_bytes(b"{}")
    with pytest.raises(DigestError, match="not listed"):
        load_bundle(attached)


def test_an_attachment_changed_after_loading_is_neither_read_nor_saved(attached: Path, tmp_path: Path) -> None:
    loaded = load_bundle(attached)
    (attached / "attachments" / "table.json").write_bytes(b'{"donors": 4}')
    with pytest.raises(DigestError, match=r"table\.json has SHA-256"):
        loaded.attachments["table.json"].read()
    with pytest.raises(DigestError, match=r"table\.json has SHA-256"):
        save_bundle(loaded, tmp_path / "again")
    assert not (tmp_path / "again").exists()
    shutil.rmtree(attached)
    with pytest.raises(NotFoundError, match=r"index\.faiss does not exist"):
        loaded.attachments["index.faiss"].read()


def test_an_attachment_is_not_held_in_memory(bundle: ModelBundle, tmp_path: Path) -> None:
    size = 200 * 2**20
    with (tmp_path / "large.faiss").open("wb") as file:
        file.truncate(size)
    bundle.attachments = {"large.faiss": Attachment(tmp_path / "large.faiss")}
    tracemalloc.start()
    try:
        save_bundle(bundle, tmp_path / "saved")
        loaded = load_bundle(tmp_path / "saved")
        assert tracemalloc.get_traced_memory()[1] < size / 2
    finally:
        tracemalloc.stop()
    assert loaded.attachments["large.faiss"].path.stat().st_size == size


@pytest.mark.parametrize(
    "name", ["../index.faiss", "a/b.json", "", ".json", "model.pkl", "index", "a b.json", "x" * 99 + ".json"]
)
def test_names_of_attachments_are_those_of_plain_data_files(bundle: ModelBundle, name: str) -> None:
    with pytest.raises(ModelError, match="is not a name for an attachment"):
        replace(bundle, attachments={name: Attachment(b"{}")})


@pytest.mark.parametrize(
    "name", ["attachments/../../outside.json", "attachments/", "/etc/passwd", "attachments/a/b.json"]
)
def test_a_listing_of_format_2_cannot_point_elsewhere(attached: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.json").write_bytes(b"{}")
    listing = json.loads((attached / "digests.json").read_bytes())
    listing["files"][name] = hashlib.sha256(b"{}").hexdigest()
    (attached / "digests.json").write_bytes(json.dumps(listing, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(DigestError, match="does not list the files"):
        load_bundle(attached)


@pytest.mark.parametrize("number", [0, 3, "2", None])
def test_an_unknown_format_is_named_with_the_remedy(saved: Path, number: object) -> None:
    listing = json.loads((saved / "digests.json").read_bytes()) | {"format": number}
    (saved / "digests.json").write_bytes(json.dumps(listing, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(ModelError, match=r"has the bundle format .*reads formats 1 and 2.*or a newer one"):
        load_bundle(saved)


def test_a_format_that_is_higher_than_needed_is_refused(saved: Path) -> None:
    listing = json.loads((saved / "digests.json").read_bytes()) | {"format": 2}
    (saved / "digests.json").write_bytes(json.dumps(listing, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(DigestError, match="does not list the files"):
        load_bundle(saved)


@pytest.mark.parametrize(
    "wrong",
    [{"task": "Two Words"}, {"columns": {"batch": ("1", "1")}}, {"columns": {"batch": ()}}, {"panel": ("A", "A")}],
)
def test_conditions_that_mean_two_things_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Conditions(**({"task": "annotation"} | wrong))


def test_a_panel_of_unknown_genes_is_refused(bundle: ModelBundle) -> None:
    with pytest.raises(ModelError, match="does not have 1 genes of the panel: CD3D"):
        replace(bundle, conditions=Conditions(task="perturbation", panel=("GENE01", "CD3D")))


def test_intact_conditions_of_another_shape_name_their_file(attached: Path) -> None:
    _reseal(attached, "conditions.json", b'{"task":"annotation","surprise":1}')
    with pytest.raises(ModelError, match=r"conditions\.json: surprise"):
        load_bundle(attached)
