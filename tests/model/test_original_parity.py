"""The arrays that the original implementation computed from its own checkpoints, reproduced to 1e-5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cytoray.model.config import ModelConfig
from cytoray.model.losses import SummedLoss, classification_loss, expression_loss
from cytoray.model.transformer import GenerativeOutput, ScGPT
from cytoray.tokens.collator import GenerativeMinibatch, Minibatch

NUMBERS = Path(__file__).parents[2].parent / "shared" / "reference" / "scgpt_numbers"
PAD, TOLERANCE = 197, 1e-5
HEADS_ABSENT_FROM = {
    "ckpt_public": set(),
    "ckpt_nn": {"flag_encoder."},
    "ckpt_impl": {"flag_encoder."},
    "ckpt_annotation": {"flag_encoder.", "mvc_decoder."},
}

pytestmark = pytest.mark.skipif(
    not NUMBERS.is_dir(), reason=f"{NUMBERS} is absent: agreement with the original implementation is then not checked"
)


def _arrays(name: str) -> dict[str, Tensor]:
    with np.load(NUMBERS / f"{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def _weights(checkpoint: str) -> dict[str, Tensor]:
    """A checkpoint's tensors under the released names, whatever attention layout it was written with."""
    stored = torch.load(NUMBERS / checkpoint / "best_model.pt", weights_only=True)
    rename = {"self_attn._impl.": "self_attn.", "in_proj_weight": "Wqkv.weight", "in_proj_bias": "Wqkv.bias"}
    weights = {}
    for name, tensor in stored.items():
        for old, new in rename.items():
            name = name.replace(old, new)
        weights[name] = tensor
    return weights


def _fold_batch_norm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """In eval mode a batch norm on the token sum is a scale and a shift, which the two norms before it can carry."""
    norm = {name: weights.pop(f"bn.{name}") for name in ("weight", "bias", "running_mean", "running_var")}
    del weights["bn.num_batches_tracked"]
    scale = norm["weight"] / (norm["running_var"] + 6.1e-5).sqrt()
    for part in ("encoder.enc_norm", "value_encoder.norm"):
        weights[f"{part}.weight"] = weights[f"{part}.weight"] * scale
        weights[f"{part}.bias"] = weights[f"{part}.bias"] * scale
    weights["encoder.enc_norm.bias"] += norm["bias"] - norm["running_mean"] * scale
    return weights


def _model(checkpoint: str, *, num_labels: int = 0, unknown_out_proj: bool = True) -> ScGPT:
    config = ModelConfig(
        vocabulary_size=200,
        width=64,
        num_heads=4,
        feedforward_width=128,
        num_layers=4,
        dropout=0.0,
        num_labels=num_labels,
        unknown_out_proj=unknown_out_proj,
    )
    model = ScGPT(config, pad_id=PAD)
    weights = _weights(checkpoint)
    if "bn.weight" in weights:
        weights = _fold_batch_norm(weights)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert unexpected == []
    absent = HEADS_ABSENT_FROM[checkpoint]
    assert {name.split(".")[0] + "." for name in missing} == absent
    return model.eval()


def _batch(genes: Tensor, values: Tensor) -> Minibatch:
    return Minibatch(
        gene_ids=genes, values=values, padding_mask=genes == PAD, cell_ids=np.arange(len(genes)).astype(np.uint64)
    )


def _assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=TOLERANCE, atol=TOLERANCE)


def test_released_checkpoint_loads_strictly() -> None:
    config = _model("ckpt_public").config
    ScGPT(config, pad_id=PAD).load_state_dict(torch.load(NUMBERS / "ckpt_public" / "best_model.pt", weights_only=True))


@pytest.mark.parametrize("checkpoint", ["ckpt_nn", "ckpt_impl"])
def test_one_pass_model(checkpoint: str) -> None:
    want, model = _arrays("ref_transformer_model"), _model(checkpoint, num_labels=1)
    batch = _batch(want["genes"], want["values"])
    assert torch.equal(batch.padding_mask, want["src_key_padding_mask"])
    real = ~batch.padding_mask
    with torch.no_grad():
        genes, cells = model.encoder(batch.gene_ids), model.embed(batch)
        _assert_close(genes[real], want["gene_token_embs"][real])
        _assert_close(model.value_encoder(batch.values)[real], want["value_embs"][real])
        _assert_close(model.encode(batch)[real], want["hidden"][real])
        _assert_close(model.encode(batch)[real], want["hidden_fastpath"][real])
        _assert_close(cells, want["cell_emb"])
        _assert_close(torch.nn.functional.normalize(cells, dim=-1), want["cell_emb_l2"])
        _assert_close(model.predict_expression(batch)[real], want["mlm_output"][real])
        _assert_close(model.mvc_decoder(cells, genes_BLD=genes)[real], want["mvc_output"][real])
        _assert_close(model.classify(cells), want["cls_output"])


def _generative() -> tuple[dict[str, Tensor], GenerativeMinibatch]:
    want = _arrays("ref_generative")
    batch = GenerativeMinibatch(
        known=_batch(want["pcpt_gene"], want["pcpt_expr"]),
        unknown_gene_ids=want["gen_gene"],
        unknown_targets=want["gen_expr_target"],
        unknown_padding_mask=want["gen_gene"] == PAD,
    )
    return want, batch


def _loss(predicted: Tensor, batch: GenerativeMinibatch) -> SummedLoss:
    return expression_loss(predicted, batch.unknown_targets, counted_BL=~batch.unknown_padding_mask)


def test_generative_passes_with_the_released_quirk() -> None:
    want, batch = _generative()
    model = _model("ckpt_public", unknown_out_proj=False)
    real, num_known = ~batch.unknown_padding_mask, batch.known.gene_ids.shape[1]
    with torch.no_grad():
        first: GenerativeOutput = model.forward_generative(batch)
        second = model.forward_generative(batch, cell_embedding_BD=first.cells_BD)
        known = model.predict_expression(batch.known)
    _assert_close(first.expression_BG[real], want["gen_preds"][real])
    _assert_close(first.cell_conditioned_BG[real], want["mvc_output"][:, num_known:][real])
    _assert_close(first.cells_BD, want["cell_emb"])
    _assert_close(second.expression_BG[real], want["gen_preds_second_pass"][real])
    _assert_close(known[~batch.known.padding_mask], want["pcpt_preds"][~batch.known.padding_mask])
    _assert_close(known[~batch.known.padding_mask], want["pcpt_only_preds"][~batch.known.padding_mask])
    _assert_close(_loss(first.expression_BG, batch).mean, want["loss_gen"])
    _assert_close(_loss(first.cell_conditioned_BG, batch).mean, want["loss_mvc"])
    _assert_close(_loss(second.expression_BG, batch).mean, want["loss_second"])


def test_the_quirk_is_what_makes_it_agree() -> None:
    want, batch = _generative()
    with torch.no_grad():
        clean = _model("ckpt_public").forward_generative(batch)
    _assert_close(clean.cells_BD, want["cell_emb"])
    assert (clean.expression_BG - want["gen_preds"]).abs().max() > 0.01


def test_annotation() -> None:
    want, model = _arrays("ref_annotation"), _model("ckpt_annotation", num_labels=7)
    batch = _batch(want["genes"], want["values"])
    with torch.no_grad():
        cells = model.embed(batch)
        logits = model.classify(cells)
    _assert_close(cells, want["cell_emb"])
    _assert_close(logits, want["cls_output"])
    _assert_close(classification_loss(logits, want["labels"]).mean, want["loss_cls"])


def test_annotation_differs_where_one_value_does() -> None:
    """The comparison above has teeth: one changed bin moves the cell well beyond the tolerance."""
    want, model = _arrays("ref_annotation"), _model("ckpt_annotation", num_labels=7)
    batch = _batch(want["genes"], want["values"])
    values = batch.values.clone()
    values[0, 1] += 1
    with torch.no_grad():
        moved = model.embed(replace(batch, values=values))
    assert (moved[0] - want["cell_emb"][0]).abs().max() > 10 * TOLERANCE
