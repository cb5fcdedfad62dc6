"""A folder in the public scGPT layout becomes the model it was, or is refused by a message that says why."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from cytoray import storage
from cytoray.cli.main import app
from cytoray.errors import ConfigError, ConflictError, ModelError, NotFoundError
from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.model.public_checkpoint import export_bundle, load_public_checkpoint, save_public_checkpoint
from cytoray.model.transformer import ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

NUMBERS = Path(__file__).parents[2].parent / "shared" / "reference" / "scgpt_numbers"
LAYOUTS = ("flash", "wrapper", "torch")
# Of the released file; a reader of other people's programs may look for any of them.
_KEYS = (
    "data_source save_dir load_model n_hvg valid_size_or_ratio dist_backend grad_accu_steps pad_token input_style "
    "input_emb_style n_bins max_seq_len training_tasks dist_url mask_ratio trunc_by_sample vocab_path rank batch_size "
    "eval_batch_size epochs lr scheduler_interval scheduler_factor warmup_ratio_or_step no_cls no_cce fp16 "
    "fast_transformer nlayers nheads embsize d_hid dropout n_layers_cls log_interval save_interval mask_value "
    "pad_value USE_CLS USE_CCE MVC USE_GENERATIVE_TRAINING world_size distributed local_rank gpu"
)
ARGS_KEYS = set(_KEYS.split())
VARIANTS: dict[str, dict[str, Any]] = {
    "pretrained": {},
    "released": {"unknown_out_proj": False},
    "integration": {
        "generative": False,
        "token_norm": "domain",
        "num_batch_labels": 3,
        "decoders_see_batch": True,
        "batch_discriminator": True,
        "num_discriminator_layers": 2,
        "zero_probability": True,
    },
    "annotation": {
        "generative": False,
        "token_norm": "batch",
        "num_labels": 5,
        "num_classifier_layers": 4,
        "cell_conditioned_decoder": "none",
    },
    "category": {"generative": False, "value_style": "category", "num_value_bins": 53},
    "scaling": {"generative": False, "value_style": "scaling"},
    "perturbation": {
        "generative": False,
        "num_perturbation_flags": 3,
        "expression_decoder": "affine",
        "adaptive_bias": True,
        "zero_probability": True,
        "dropout": 0.0,
    },
    "multi-omic": {"generative": False, "num_modalities": 5, "decoders_see_batch": True, "num_batch_labels": 2},
    "concat": {"cell_conditioned_decoder": "concat query", "decoders_see_batch": True, "num_batch_labels": 2},
    "sum": {"cell_conditioned_decoder": "sum query"},
    "shallow": {"num_labels": 2, "num_classifier_layers": 1},
    "untold": {
        "cell_conditioned_decoder": "inner product, detach",
        "cell_embedding": "mean",
        "attention_dropout": 0.1,
        "num_batch_labels": 7,
        "num_classifier_layers": 2,
        "dropout": 0.125,
    },
}

Save = Callable[..., Path]


@pytest.fixture
def save(build_model: Callable[..., ScGPT], vocabulary: GeneVocabulary, tmp_path: Path) -> Save:
    """Save a model with the given changes as ``checkpoint`` and return the folder."""

    def save(layout: str = "flash", **changes: Any) -> Path:
        model = build_model(**changes)
        tokens = _tokens(model.config.num_value_bins)
        save_public_checkpoint(model, vocabulary, tokens, tmp_path / "checkpoint", layout=layout)  # type: ignore[arg-type]
        return tmp_path / "checkpoint"

    return save


def _tokens(num_value_bins: int) -> TokenizerConfig:
    """The released tokens; a table of values has rows for padding and mask behind those of the bins."""
    n_bins = num_value_bins - 2
    markers = {"pad_value": n_bins, "cls_value": n_bins, "mask_value": n_bins + 1}
    return TokenizerConfig(n_bins=n_bins, **markers) if num_value_bins else TokenizerConfig()


def _tensors(folder: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = torch.load(folder / "best_model.pt", weights_only=True)
    return content


def _change(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Save the tensors anew after ``change`` had them; what it returns is saved instead, if it returns something."""
    tensors: dict[str, Any] = _tensors(folder)
    torch.save(change(tensors) or tensors, folder / "best_model.pt")


def _set_args(folder: Path, **changes: Any) -> None:
    args = json.loads((folder / "args.json").read_text()) | changes
    (folder / "args.json").write_text(json.dumps({key: value for key, value in args.items() if value is not ...}))


def _assert_same(model: ScGPT, wanted: ScGPT) -> None:
    assert model.config == wanted.config
    want, got = wanted.state_dict(), model.state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) and got[name].dtype == want[name].dtype for name in want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_export_then_import_gives_the_model_back(
    save: Save, build_model: Callable[..., ScGPT], vocabulary: GeneVocabulary, variant: str, layout: str
) -> None:
    changes = VARIANTS[variant]
    checkpoint = load_public_checkpoint(save(layout, **changes))
    _assert_same(checkpoint.model, build_model(**changes))
    assert checkpoint.vocabulary == vocabulary
    assert checkpoint.tokenizer_config == _tokens(checkpoint.model.config.num_value_bins)
    assert not checkpoint.model.training
    report = checkpoint.report
    assert report.matched == tuple(checkpoint.model.state_dict())
    assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())
    # 3 layers: 4 attention tensors have another name in the wrapper's layout, 2 in torch's.
    assert len(report.renamed) == {"flash": 0, "wrapper": 12, "torch": 6}[layout]


def test_a_loaded_model_computes_the_same_and_can_be_trained(
    save: Save, build_model: Callable[..., ScGPT], make_batch: Callable[..., Any]
) -> None:
    model, batch = load_public_checkpoint(save("torch")).model, make_batch([5, 9])
    assert torch.equal(model.embed(batch), build_model().embed(batch))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    model.embed(batch).sum().backward()
    assert model.encoder.embedding.weight.grad is not None


def test_names_and_args_are_those_of_the_released_file(save: Save) -> None:
    folder = save(num_labels=2)
    assert {path.name for path in folder.iterdir()} == {"best_model.pt", "args.json", "vocab.json"}
    args, tensors = json.loads((folder / "args.json").read_text()), _tensors(folder)
    assert ARGS_KEYS <= args.keys() <= ARGS_KEYS | {"cytoray"}
    wanted = {"embsize": 16, "nheads": 4, "d_hid": 24, "nlayers": 3, "n_layers_cls": 3, "dropout": 0.0, "pad_value": -2}
    assert args | wanted | {"pad_token": "<pad>"} == args
    parts = list(dict.fromkeys(name.split(".")[0] for name in tensors))
    original = "encoder flag_encoder value_encoder transformer_encoder decoder cls_decoder mvc_decoder"
    assert parts == original.split()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    layer = "transformer_encoder.layers.0.self_attn."
    names = [name.removeprefix(layer) for name in tensors if name.startswith(layer)]
    assert names == ["Wqkv.weight", "Wqkv.bias", "out_proj.weight", "out_proj.bias"]


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("wrapper", ["_impl.Wqkv.weight", "_impl.Wqkv.bias", "_impl.out_proj.weight", "_impl.out_proj.bias"]),
        ("torch", ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]),
    ],
)
def test_other_layouts_have_their_names(save: Save, layout: str, names: list[str]) -> None:
    layer = "transformer_encoder.layers.2.self_attn."
    assert [name.removeprefix(layer) for name in _tensors(save(layout)) if name.startswith(layer)] == names


def test_args_of_training_are_kept_and_those_of_the_model_are_right(
    build_model: Callable[..., ScGPT], vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    args = {"lr": 3e-4, "nheads": 7, "note": "mine", "cytoray": {"labels": ["stale"]}}
    save_public_checkpoint(build_model(), vocabulary, TokenizerConfig(), tmp_path / "out", args=args)
    written = json.loads((tmp_path / "out" / "args.json").read_text())
    assert (written["lr"], written["nheads"], written["note"]) == (3e-4, 4, "mine")
    assert "labels" not in written["cytoray"]


def test_a_folder_is_never_overwritten_nor_left_half_written(
    save: Save, build_model: Callable[..., ScGPT], vocabulary: GeneVocabulary, tmp_path: Path
) -> None:
    folder = save()
    before = (folder / "best_model.pt").read_bytes()
    with pytest.raises(ConflictError, match="already exists"):
        save_public_checkpoint(build_model(), vocabulary, TokenizerConfig(), folder)
    assert (folder / "best_model.pt").read_bytes() == before
    with pytest.raises(TypeError):
        save_public_checkpoint(build_model(), vocabulary, TokenizerConfig(), tmp_path / "half", args={"lr": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("prefix", "told"),
    [("module.", ""), ("_orig_mod.", ""), ("module._orig_mod.", ""), ("model.", "model."), ("net.", "net."),
     ("_orig_mod.module.model.", "model."), ("model.net.", "model.net."), ("backbone.scgpt.", "backbone.scgpt.")],
)  # fmt: skip
def test_prefixes_of_wrappers_are_stripped_and_reported(
    save: Save, build_model: Callable[..., ScGPT], prefix: str, told: str
) -> None:
    folder = save("wrapper")
    _change(folder, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    checkpoint = load_public_checkpoint(folder)
    _assert_same(checkpoint.model, build_model())
    report = checkpoint.report
    assert len(report.renamed) == len(report.matched)
    assert report.notes == ((f"the prefix {told!r} was removed from the names",) if told else ())


def test_wrappers_within_names_are_stripped(save: Save, build_model: Callable[..., ScGPT]) -> None:
    folder = save()
    names = {"transformer_encoder.": "transformer_encoder._orig_mod.", "encoder.emb": "encoder.module.emb"}

    def wrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for old, new in names.items():
            tensors = {
                (new + name.removeprefix(old) if name.startswith(old) else name): tensors[name] for name in tensors
            }
        return tensors

    _change(folder, wrapped)
    _assert_same(load_public_checkpoint(folder).model, build_model())


def test_a_part_of_a_larger_module_is_found_and_the_rest_reported(save: Save) -> None:
    folder = save()
    _change(folder, lambda tensors: {f"model.{name}": tensors[name] for name in tensors} | {"head": torch.ones(2)})
    assert load_public_checkpoint(folder).report.unexpected == ("head",)
    _change(folder, lambda tensors: tensors | {"ema.encoder.embedding.weight": torch.ones(2)})
    with pytest.raises(ModelError, match=r"several models: ema\.encoder\..* and model\.encoder\."):
        load_public_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    [
        "transformer_encoder.layers.0.self_attn.Wqkv.lora_A.weight",
        "transformer_encoder.layers.1.norm3.weight",
        "encoder.position.weight",
        "dsbn.bns.0.weight",
        "cls_decoder.cls_token_matrix",
    ],
)
def test_tensors_of_another_architecture_are_refused(save: Save, name: str) -> None:
    folder = save(**VARIANTS["integration"], num_labels=3)
    _change(folder, lambda tensors: tensors | {name: torch.ones(2)})
    with pytest.raises(ModelError, match=rf"architecture that cytoray does not have: {name}"):
        load_public_checkpoint(folder)


@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model"])
def test_weights_within_a_training_checkpoint_are_found(
    save: Save, build_model: Callable[..., ScGPT], key: str
) -> None:
    folder = save()
    _change(folder, lambda tensors: {"epoch": 3, key: tensors})
    checkpoint = load_public_checkpoint(folder)
    _assert_same(checkpoint.model, build_model())
    assert key in checkpoint.report.text()


def test_the_old_file_format_is_read(save: Save, build_model: Callable[..., ScGPT]) -> None:
    folder = save()
    torch.save(_tensors(folder), folder / "best_model.pt", _use_new_zipfile_serialization=False)
    checkpoint = load_public_checkpoint(folder)
    _assert_same(checkpoint.model, build_model())
    assert "no checksums" in checkpoint.report.text()


def test_the_model_does_not_depend_on_its_file(save: Save) -> None:
    folder = save()
    model = load_public_checkpoint(folder).model
    before = model.encoder.embedding.weight.clone()
    with (folder / "best_model.pt").open("r+b") as file:
        file.write(b"\0" * (folder / "best_model.pt").stat().st_size)
    assert torch.equal(model.encoder.embedding.weight, before)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_single(save: Save, kind: torch.dtype) -> None:
    folder = save()
    stored = {name: tensor.to(kind) for name, tensor in _tensors(folder).items()}
    torch.save(stored, folder / "best_model.pt")
    checkpoint = load_public_checkpoint(folder)
    got = checkpoint.model.state_dict()
    assert all(torch.equal(got[name], tensor.float()) for name, tensor in stored.items())
    assert f"{len(stored)} tensors were {kind}" in checkpoint.report.text()


@pytest.mark.parametrize(
    "name",
    [
        "transformer_encoder.layers.1.self_attn.Wqkv.weight",
        "transformer_encoder.layers.0.linear1.weight",
        "encoder.enc_norm.bias",
        "value_encoder.linear1.weight",
        "encoder.embedding.weight",
    ],
)
def test_a_missing_body_tensor_is_named_whatever_is_allowed(save: Save, name: str) -> None:
    folder = save()
    _change(folder, lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name})
    for allowed in (False, True):
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            load_public_checkpoint(folder, allow_missing=allowed)


def test_attention_under_unknown_names_is_no_random_attention(save: Save) -> None:
    folder = save()
    _change(folder, lambda t: {name.replace("Wqkv", "qkv"): tensor for name, tensor in t.items()})
    with pytest.raises(ModelError, match=r"lacks 6 of \d+ tensors: transformer_encoder\.layers\.0\.self_attn\.Wqkv"):
        load_public_checkpoint(folder)


def test_all_layers_must_be_there(save: Save) -> None:
    folder = save()
    _change(folder, lambda t: {name: tensor for name, tensor in t.items() if ".layers.1." not in name})
    with pytest.raises(ModelError, match=r"lacks 12 .*layers\.1\."):
        load_public_checkpoint(folder)


def test_a_lost_last_layer_shows_in_the_args(save: Save) -> None:
    folder = save()
    _change(folder, lambda t: {name: tensor for name, tensor in t.items() if ".layers.2." not in name})
    with pytest.raises(ModelError, match=r"args\.json: nlayers is 3, but the tensors say 2 .*layers\.1"):
        load_public_checkpoint(folder)
    _change(folder, lambda t: {name: tensor for name, tensor in t.items() if ".layers." not in name})
    with pytest.raises(ModelError, match="no tensors transformer_encoder"):
        load_public_checkpoint(folder)


def test_a_lost_value_encoder_does_not_make_another_model(save: Save) -> None:
    folder = save()
    _change(folder, lambda t: {name: tensor for name, tensor in t.items() if not name.startswith("value_encoder")})
    with pytest.raises(ModelError, match="input_emb_style is 'continuous', but the tensors say 'scaling'"):
        load_public_checkpoint(folder)


def test_a_head_in_part_is_refused_or_starts_from_the_same_initial_values(save: Save) -> None:
    folder = save(num_labels=4)
    name = "cls_decoder.out_layer.weight"

    def spoil(tensors: dict[str, Any]) -> None:
        del tensors[name]
        tensors["mvc_decoder.W.weight"] = torch.zeros(16, 8)

    _change(folder, spoil)
    with pytest.raises(ModelError, match=r"lacks 1 .*cls_decoder\.out_layer\.weight.*allow missing"):
        load_public_checkpoint(folder)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (load_public_checkpoint(folder, allow_missing=True) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.report.missing == (name,)
    assert first.report.reshaped == (("mvc_decoder.W.weight", (16, 16), (16, 8)),)
    assert f"{name}: keeps its initial values" in first.report.text()
    assert "(16, 8), (16, 16) is wanted" in first.report.text()
    assert first.model.state_dict()[name].shape == (4, 16)
    _assert_same(first.model, second.model)
    assert torch.equal(
        first.model.state_dict()["encoder.embedding.weight"], _tensors(folder)["encoder.embedding.weight"]
    )


def test_unexpected_tensors_are_reported_and_not_used(save: Save, build_model: Callable[..., ScGPT]) -> None:
    folder = save()
    _change(folder, lambda tensors: tensors | {"sim.temperature": torch.ones(1), "bad": torch.tensor([float("nan")])})
    checkpoint = load_public_checkpoint(folder)
    assert checkpoint.report.unexpected == ("sim.temperature", "bad")
    assert "unexpected  sim.temperature: not used" in checkpoint.report.text()
    _assert_same(checkpoint.model, build_model())


def test_two_names_of_one_tensor_are_refused(save: Save) -> None:
    folder = save()
    ours, theirs = (f"transformer_encoder.layers.0.self_attn.{name}" for name in ("Wqkv.bias", "in_proj_bias"))
    _change(folder, lambda tensors: tensors | {theirs: tensors[ours] + 1})
    with pytest.raises(ModelError, match=r"Wqkv\.bias and .*in_proj_bias are both"):
        load_public_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("decoder.fc.2.weight", torch.zeros(16, 15), r"decoder\.fc\.2\.weight has shape \(16, 15\).*\(16, 16\)"),
        ("encoder.embedding.weight", torch.zeros(63), r"encoder\.embedding\.weight has shape \(63,\)"),
        ("decoder.fc.0.bias", torch.zeros(16, dtype=torch.int64), r"decoder\.fc\.0\.bias holds torch\.int64"),
        ("decoder.fc.0.bias", torch.zeros(16, dtype=torch.complex64), r"decoder\.fc\.0\.bias holds torch\.complex64"),
        ("decoder.fc.0.bias", torch.full((16,), float("nan")), r"decoder\.fc\.0\.bias holds 16 NaN or infinite"),
        ("decoder.fc.0.bias", torch.full((16,), 1e300, dtype=torch.float64), r"decoder\.fc\.0\.bias holds 16 NaN"),
        ("decoder.fc.0.bias", torch.zeros(1).expand(10**9), r"decoder\.fc\.0\.bias claims shape"),
        ("decoder.fc.0.bias", torch.zeros(16).to_sparse(), r"decoder\.fc\.0\.bias is torch\.sparse_coo"),
        ("decoder.fc.0.bias", [0.0] * 16, r"'decoder\.fc\.0\.bias' is a list"),
        (7, torch.zeros(1), "7 is a Tensor"),
        ("transformer_encoder.layers.99999999.norm1.bias", torch.zeros(16), r"nlayers is 3.*say 100000000"),
    ],
)
def test_a_tensor_that_is_no_weight_is_named(save: Save, name: Any, value: Any, message: str) -> None:
    folder = save()
    _change(folder, lambda tensors: tensors | {name: value})
    with pytest.raises(ModelError, match=message):
        load_public_checkpoint(folder)


def test_tensors_that_disagree_are_refused(save: Save) -> None:
    folder = save(**VARIANTS["integration"])
    _change(folder, lambda t: t | {"batch_encoder.embedding.weight": torch.zeros(4, 16)})
    with pytest.raises(
        ModelError, match=r"num_batch_labels: dsbn\.bns says 3, batch_encoder\.embedding\.weight says 4"
    ):
        load_public_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("embsize", 32, r"16 \(encoder\.embedding\.weight\)"),
        ("d_hid", 16, r"24 \(transformer_encoder\.layers\.0\.linear1\.weight\)"),
        ("nlayers", 4, r"3 \(transformer_encoder\.layers\.2"),
        ("n_layers_cls", 2, r"3 \(cls_decoder"),
        ("input_emb_style", "category", r"'continuous' \(value_encoder"),
    ],
)
def test_args_that_contradict_the_tensors_are_refused(save: Save, key: str, value: Any, told: str) -> None:
    folder = save(num_labels=2)
    _set_args(folder, **{key: value})
    with pytest.raises(ModelError, match=rf"args\.json: {key} is {value!r}, but the tensors say {told}"):
        load_public_checkpoint(folder)


def test_depth_of_a_classifier_that_is_not_there_is_no_contradiction(save: Save) -> None:
    folder = save()
    _set_args(folder, n_layers_cls=2)
    assert load_public_checkpoint(folder).model.config.num_classifier_layers == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embsize", "16"),
        ("nheads", 4.5),
        ("nheads", True),
        ("nheads", 0),
        ("dropout", 1.0),
        ("dropout", "0.2"),
        ("n_bins", 1),
        ("max_seq_len", -5),
        ("pad_value", "-2"),
        ("mask_value", float("nan")),
        ("pad_token", "[PAD]"),
        ("nheads", 5),
        ("cytoray", {"model": 3}),
        ("cytoray", {"tokenizer": {"seed": -1}}),
        ("cytoray", {"model": {"surprise": 3}}),
        ("cytoray", {"model": {"width": 8}}),
    ],
)
def test_wrong_args_are_named(save: Save, key: str, value: Any) -> None:
    folder = save()
    _set_args(folder, **{key: value})
    with pytest.raises(ModelError, match=key):
        load_public_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"args"', "[" * 100_000, b"\xff\xfe\x00"])
def test_args_that_are_no_object_name_their_file(save: Save, text: str | bytes) -> None:
    folder = save()
    (folder / "args.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ModelError, match=r"args\.json is not"):
        load_public_checkpoint(folder)


def test_partial_args_are_enough(save: Save) -> None:
    folder = save()
    _set_args(folder, **dict.fromkeys(ARGS_KEYS | {"cytoray"}, ...))
    _set_args(folder, nheads=4, pad_value=0, n_bins=None)
    with pytest.warns(UserWarning, match="n_bins 51, max_seq_len 1200, mask_value -1 is assumed"):
        checkpoint = load_public_checkpoint(folder)
    assert checkpoint.report.assumed == ("n_bins 51", "max_seq_len 1200", "mask_value -1")
    assert checkpoint.model.config.num_heads == 4
    assert checkpoint.model.config.unknown_out_proj is False
    assert checkpoint.tokenizer_config == TokenizerConfig(pad_value=0.0, cls_value=0.0)


def test_heads_that_nothing_gives_are_never_assumed(save: Save) -> None:
    folder = save()
    _set_args(folder, nheads=...)
    with pytest.raises(ModelError, match=r"args.json does not give nheads.*width 16 it can be 1, 2, 4, 8, 16"):
        load_public_checkpoint(folder)
    given = load_public_checkpoint(folder, overrides={"num_heads": 2})
    assert given.model.config.num_heads == 2
    assert given.report.notes == ()


def test_without_args_the_heads_must_be_given(save: Save) -> None:
    folder = save()
    (folder / "args.json").unlink()
    with pytest.raises(NotFoundError, match=r"no args\.json; it holds best_model\.pt, vocab\.json\..*num_heads"):
        load_public_checkpoint(folder)
    with pytest.warns(UserWarning, match="n_bins 51, max_seq_len 1200, pad_value -2, mask_value -1 is assumed"):
        checkpoint = load_public_checkpoint(folder, overrides={"num_heads": 4})
    assert checkpoint.args == {}
    assert checkpoint.model.config.num_heads == 4


def test_a_table_of_values_shows_what_args_do_not_give(save: Save) -> None:
    folder = save(**VARIANTS["category"])
    _set_args(folder, n_bins=..., pad_value=..., mask_value=...)
    with pytest.warns(UserWarning, match="n_bins 51, pad_value 51, mask_value 52 is assumed"):
        checkpoint = load_public_checkpoint(folder)
    assert checkpoint.tokenizer_config == _tokens(53)
    _set_args(folder, pad_value=-2)
    with pytest.raises(ModelError, match=r"pad_value -2, cls_value -2 is outside of the value table, which has 53"):
        load_public_checkpoint(folder)


def test_the_decoder_of_a_perturbation_model_must_be_named(save: Save) -> None:
    folder = save(**VARIANTS["perturbation"], decoder_activation="ReLU")
    assert load_public_checkpoint(folder).model.config.decoder_activation == "ReLU"
    _set_args(folder, decoder_activation=..., decoder_adaptive_bias=...)
    with pytest.warns(UserWarning, match="decoder_activation null, decoder_adaptive_bias false is assumed"):
        assert load_public_checkpoint(folder).model.config.decoder_activation is None
    overrides = {"decoder_activation": "tanh", "adaptive_bias": True}
    config = load_public_checkpoint(folder, overrides=overrides).model.config
    assert (config.decoder_activation, config.adaptive_bias) == ("Tanh", True)
    with pytest.raises(ModelError, match="decoder_activation"):
        load_public_checkpoint(folder, overrides={"decoder_activation": "swoosh"})


def test_constructor_options_in_args_are_honoured(save: Save) -> None:
    folder = save()
    _set_args(folder, cell_emb_style="avg-pool", mvc_decoder_style="inner product, detach")
    config = load_public_checkpoint(folder).model.config
    assert (config.cell_embedding, config.cell_conditioned_decoder) == ("mean", "inner product, detach")
    for key, value in (("pre_norm", True), ("fast_transformer_backend", "linear")):
        _set_args(folder, **{key: value})
        with pytest.raises(ModelError, match=key):
            load_public_checkpoint(folder)
        _set_args(folder, **{key: ...})


def test_overrides_say_what_tensors_leave_open(save: Save) -> None:
    overrides = {"cell_embedding": "weighted", "num_heads": 2, "cell_conditioned_decoder": "inner product, detach"}
    checkpoint = load_public_checkpoint(save(), overrides=overrides)
    config = checkpoint.model.config
    assert {name: getattr(config, name) for name in overrides} == overrides
    assert "nheads 4; 2 was asked for" in checkpoint.report.text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 32}, "width is 32, but the tensors say 16"),
        ({"num_labels": 3}, "num_labels is 3, but the tensors say 0"),
        ({"cell_conditioned_decoder": "none"}, "is 'none', but the tensors say 'inner product'"),
        ({"cell_embeding": "cls"}, "Did you mean cell_embedding"),
        ({"cell_embedding": "max"}, "cell_embedding"),
        ({"num_heads": 3}, "3 attention heads"),
        ({"num_heads": "4"}, "num_heads"),
        ({"adaptive_bias": True}, "adaptive_bias needs expression_decoder affine"),
    ],
)
def test_overrides_that_cannot_be_are_refused(save: Save, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_public_checkpoint(save(), overrides=overrides)


def test_vocabulary_must_have_a_token_for_each_row(save: Save, vocabulary: GeneVocabulary) -> None:
    folder = save()
    for tokens in (vocabulary.tokens[1:], ("EXTRA", *vocabulary.tokens)):
        (folder / "vocab.json").write_text(GeneVocabulary(tokens).to_json())
        with pytest.raises(ModelError, match=rf"has {len(tokens)} tokens .* has 63 rows"):
            load_public_checkpoint(folder)


def test_special_tokens_that_the_file_lacks_are_appended_if_the_table_has_rows_for_them(
    save: Save, vocabulary: GeneVocabulary
) -> None:
    folder = save()
    genes = {token: number for number, token in enumerate(vocabulary.tokens[:61])}
    (folder / "vocab.json").write_text(json.dumps(genes))
    checkpoint = load_public_checkpoint(folder)
    assert checkpoint.vocabulary == vocabulary
    assert "vocab.json lacks <cls>, <eoc>" in checkpoint.report.text()


@pytest.mark.timeout(60)  # seconds are enough; what takes a look at all tokens for each of them takes an hour
def test_a_vocabulary_of_whole_human_size_is_no_trouble(build_model: Callable[..., ScGPT], tmp_path: Path) -> None:
    vocabulary = GeneVocabulary.load_default()
    model = build_model(vocabulary_size=vocabulary.size)
    save_public_checkpoint(model, vocabulary, TokenizerConfig(), tmp_path / "large")
    assert load_public_checkpoint(tmp_path / "large").vocabulary == vocabulary


@pytest.mark.parametrize("text", ["[1]", "{", '{"A": 1}', '{"A": "0"}', "[" * 100_000])
def test_a_broken_vocabulary_names_its_file(save: Save, text: str) -> None:
    folder = save()
    (folder / "vocab.json").write_text(text)
    with pytest.raises(ModelError, match=r"vocab\.json: "):
        load_public_checkpoint(folder)


class _Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_a_hostile_pickle_is_not_run(save: Save, tmp_path: Path, form: str) -> None:
    folder, trace = save(), tmp_path / "executed"
    content = {"encoder.embedding.weight": _Hostile(f"touch {trace}")}
    if form == "pickle":
        (folder / "best_model.pt").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / "best_model.pt", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ModelError, match=r"best_model\.pt is rejected: .*No code of it was run\.") as caught:
        load_public_checkpoint(folder)
    assert not trace.exists()
    if form != "pickle":
        assert caught.value.details["refused"] == "posix.system"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("modern", [True, False])
def test_a_truncated_file_is_named(save: Save, share: float, modern: bool) -> None:
    folder = save()
    torch.save(_tensors(folder), folder / "best_model.pt", _use_new_zipfile_serialization=modern)
    data = (folder / "best_model.pt").read_bytes()
    (folder / "best_model.pt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"best_model\.pt .*No code of it was run"):
        load_public_checkpoint(folder)


def test_a_flipped_bit_in_a_weight_is_found(save: Save) -> None:
    folder = save()
    data = bytearray((folder / "best_model.pt").read_bytes())
    weights = _tensors(folder)["mvc_decoder.W.weight"].numpy().tobytes()
    data[data.index(weights) + 100] ^= 1
    (folder / "best_model.pt").write_bytes(data)
    with pytest.raises(ModelError, match=r"best_model\.pt is damaged: .*record .*/data/\d+"):
        load_public_checkpoint(folder)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {}, torch.nn.Linear(2, 2), {"state_dict": {"a": 1}}])
def test_something_other_than_weights_is_refused(save: Save, content: Any) -> None:
    folder = save()
    torch.save(content, folder / "best_model.pt")
    with pytest.raises(ModelError, match=r"best_model\.pt is (rejected|not a state dict)"):
        load_public_checkpoint(folder)


def test_a_wrong_folder_tells_what_is_there(save: Save, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is missing"):
        load_public_checkpoint(tmp_path / "nowhere")
    folder = save()
    with pytest.raises(NotFoundError, match="a file, not a folder"):
        load_public_checkpoint(folder / "best_model.pt")
    for name in ("best_model.pt", "vocab.json"):
        (folder / name).rename(folder / f"old_{name}")
        with pytest.raises(NotFoundError, match=rf"no {name}; it holds .*old_{name}"):
            load_public_checkpoint(folder)
        (folder / f"old_{name}").rename(folder / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        NotFoundError, match=r"no best_model\.pt and no args\.json and no vocab\.json; it holds nothing"
    ):
        load_public_checkpoint(tmp_path / "empty")


def test_loading_draws_no_random_numbers(save: Save) -> None:
    folder = save()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_public_checkpoint(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_of_an_imported_model(save: Save) -> None:
    checkpoint = load_public_checkpoint(save(num_labels=3))
    assert checkpoint.to_bundle().labels == ("0", "1", "2")
    assert checkpoint.to_bundle(["B", "T", "NK"]).labels == ("B", "T", "NK")
    with pytest.raises(ModelError, match="3 labels, 2 names"):
        checkpoint.to_bundle(["B", "T"])
    with pytest.raises(ModelError, match="2 distinct"):
        checkpoint.to_bundle(["B", "T", "T"])


def test_lineage_names_the_weights_and_nothing_else(save: Save, tmp_path: Path) -> None:
    folder = save()
    lineage = load_public_checkpoint(folder).to_bundle().lineage
    assert lineage.keys() == {"source", "source_weights_digest"}
    folder = folder.rename(tmp_path / "moved")
    _set_args(folder, lr=1.0)
    assert load_public_checkpoint(folder).to_bundle().lineage == lineage
    _change(folder, lambda tensors: tensors | {"decoder.fc.4.bias": torch.ones(1)})
    assert load_public_checkpoint(folder).to_bundle().lineage != lineage


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["models", *map(str, arguments)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", ["released", "integration", "annotation", "untold"])
def test_import_export_import_gives_an_equal_digest(save: Save, tmp_path: Path, variant: str, layout: str) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    options = ["--set", "num_heads=2", "--set", "pooling_counts_padding=true", "--allow-missing"]
    imported = _run("import", save(**VARIANTS[variant]), "--out", first, *options)
    assert imported.exit_code == 0, imported.output
    exported = _run("export", first, "--out", tmp_path / "exported", "--layout", layout)
    assert exported.exit_code == 0, exported.output
    assert _run("import", tmp_path / "exported", "--out", again).exit_code == 0
    digests = [load_bundle(folder).digest for folder in (first, again)]
    assert digests[0] == digests[1]
    assert f"{digests[0]}" in imported.stdout
    assert "tensors loaded" in imported.stdout
    assert load_bundle(first).model.config.num_heads == 2


def test_everything_of_a_bundle_but_its_lineage_survives_the_layout(bundle: ModelBundle, tmp_path: Path) -> None:
    bundle.tokenizer_config = TokenizerConfig(n_bins=5, max_length=24, cls_value=0.0, pad_value=0.5, seed=7)
    export_bundle(bundle, tmp_path / "out")
    loaded = load_public_checkpoint(tmp_path / "out").to_bundle()
    _assert_same(loaded.model, bundle.model)
    assert loaded.labels == bundle.labels == ("B", "T", "NK")
    assert loaded.tokenizer_config == bundle.tokenizer_config
    loaded.lineage = bundle.lineage
    assert save_bundle(loaded, tmp_path / "second") == save_bundle(bundle, tmp_path / "first")


def test_checkpoint_and_bundle_may_lie_in_a_bucket(
    save: Save, tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where bundles are cached
    storage.upload_folder(save(), f"{s3_uri}/checkpoint")
    assert _run("import", f"{s3_uri}/checkpoint", "--out", tmp_path / "first").exit_code == 0
    storage.upload_folder(tmp_path / "first", f"{s3_uri}/bundle")
    assert _run("export", f"{s3_uri}/bundle", "--out", tmp_path / "exported").exit_code == 0
    again = load_public_checkpoint(tmp_path / "exported").to_bundle()
    assert save_bundle(again, tmp_path / "again") == load_bundle(tmp_path / "first").digest
    assert isinstance(_run("import", f"{s3_uri}/nothing", "--out", tmp_path / "x").exception, NotFoundError)


def test_labels_on_the_command_line(save: Save, tmp_path: Path) -> None:
    folder, names = save(num_labels=2), tmp_path / "names.txt"
    names.write_text("B cell\nT cell\n")
    assert _run("import", folder, "--out", tmp_path / "a", "--label", "B cell", "--label", "T cell").exit_code == 0
    assert _run("import", folder, "--out", tmp_path / "b", "--labels", names).exit_code == 0
    assert load_bundle(tmp_path / "a").labels == ("B cell", "T cell")
    assert load_bundle(tmp_path / "a").digest == load_bundle(tmp_path / "b").digest


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--set", "num_heads"], ConfigError),
        (["--set", "num_heads=["], ConfigError),
        (["--set", "width=7"], ModelError),
        (["--labels", "nowhere.txt"], ConfigError),
        (["--labels", "nowhere.txt", "--label", "B"], ConfigError),
        (["--label", "B"], ModelError),
    ],
)
def test_mistakes_on_the_command_line_are_told(
    save: Save, tmp_path: Path, options: list[str], kind: type[Exception]
) -> None:
    result = _run("import", save(num_labels=2), "--out", tmp_path / "out", *options)
    assert isinstance(result.exception, kind)
    assert not (tmp_path / "out").exists()


def test_an_unknown_layout_is_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    save_bundle(bundle, tmp_path / "bundle")
    assert _run("export", tmp_path / "bundle", "--out", tmp_path / "out", "--layout", "flash3").exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not NUMBERS.is_dir(), reason=f"the original's checkpoints are not at {NUMBERS}")
@pytest.mark.parametrize(
    ("name", "layout", "num_tensors"),
    [
        ("public", "flash", 67),
        ("nn", "torch", 76),
        ("impl", "wrapper", 76),
        ("integration", "torch", 106),
        ("annotation", "torch", 78),
        ("category", "torch", 73),
        ("generator", "torch", 83),
        ("generator_adaptive", "torch", 83),
        ("multiomic", "torch", 92),
    ],
)
def test_checkpoints_of_the_original_load_whole_and_are_written_as_they_were(
    name: str, layout: Any, num_tensors: int, tmp_path: Path
) -> None:
    folder = NUMBERS / f"ckpt_{name}"
    named = {"decoder_activation": None, "adaptive_bias": "adaptive" in name} if "generator" in name else {}
    checkpoint = load_public_checkpoint(folder, overrides=named)
    report = checkpoint.report
    assert len(report.matched) == num_tensors
    assert (report.missing, report.unexpected, report.reshaped, report.notes) == ((), (), (), ())
    export_bundle(checkpoint.to_bundle(), tmp_path / "out", layout=layout, args=checkpoint.args)
    want, got = _tensors(folder), _tensors(tmp_path / "out")
    assert list(got) == list(want)
    assert all(torch.equal(got[key], want[key]) for key in want)
    args = json.loads((tmp_path / "out" / "args.json").read_text())
    told = {"training_tasks", "no_cls", "fast_transformer", "USE_CLS", "MVC", "USE_GENERATIVE_TRAINING"}
    added = {"decoder_activation", "decoder_adaptive_bias"} if named else set()
    assert args.keys() == checkpoint.args.keys() | added
    assert {key for key in args.keys() - added if args[key] != checkpoint.args[key]} <= told
    assert load_public_checkpoint(tmp_path / "out").vocabulary == checkpoint.vocabulary
