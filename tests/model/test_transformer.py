"""The transformer against torch's own layer, and what must not influence what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from cytoray.model.config import ModelConfig
from cytoray.model.layout import Layout
from cytoray.model.transformer import EncoderLayer, GenerativeOutput, ScGPT
from cytoray.tokens.collator import GenerativeMinibatch, Minibatch

BuildModel = Callable[..., ScGPT]
MakeBatch = Callable[..., Minibatch]
MakeGenerative = Callable[..., GenerativeMinibatch]


def test_state_dict_has_the_released_names_and_shapes(config: ModelConfig) -> None:
    d, f, v = 16, 24, 63
    want: dict[str, tuple[int, ...]] = {
        "encoder.embedding.weight": (v, d),
        "flag_encoder.weight": (2, d),
        "value_encoder.linear1.weight": (d, 1),
        "value_encoder.linear1.bias": (d,),
        "value_encoder.linear2.weight": (d, d),
        "value_encoder.linear2.bias": (d,),
        "decoder.fc.0.weight": (d, d),
        "decoder.fc.0.bias": (d,),
        "decoder.fc.2.weight": (d, d),
        "decoder.fc.2.bias": (d,),
        "decoder.fc.4.weight": (1, d),
        "decoder.fc.4.bias": (1,),
        "mvc_decoder.gene2query.weight": (d, d),
        "mvc_decoder.gene2query.bias": (d,),
        "mvc_decoder.W.weight": (d, d),
    }
    norms = ["encoder.enc_norm", "value_encoder.norm"]
    for number in range(3):
        layer = f"transformer_encoder.layers.{number}"
        norms += [f"{layer}.norm1", f"{layer}.norm2"]
        linears = {"self_attn.Wqkv": (3 * d, d), "self_attn.out_proj": (d, d), "linear1": (f, d), "linear2": (d, f)}
        for name, shape in linears.items():
            want |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
    want |= {f"{norm}.{part}": (d,) for norm in norms for part in ("weight", "bias")}
    model = ScGPT(config, pad_id=60)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == want
    labelled = ScGPT(config.model_copy(update={"num_labels": 5}), pad_id=60).state_dict()
    extra = {name: tuple(labelled[name].shape) for name in labelled.keys() - want.keys()}
    blocks = {f"cls_decoder._decoder.{n}.{part}" for n in (0, 2, 3, 5) for part in ("weight", "bias")}
    assert extra.keys() == blocks | {"cls_decoder.out_layer.weight", "cls_decoder.out_layer.bias"}
    assert extra["cls_decoder.out_layer.weight"] == (5, d)


def test_initialisation_is_the_documented_one(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = ScGPT(config.model_copy(update={"vocabulary_size": 2000}), pad_id=60)
    table = model.encoder.embedding.weight
    assert table.abs().max() <= 0.1
    assert abs(table.std().item() - 0.2 / 12**0.5) < 1e-3
    assert table[60].abs().max() > 0
    first, second = (layer.self_attn.Wqkv.weight for layer in model.transformer_encoder.layers[:2])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("training", [False, True])
def test_layer_equals_torchs_post_norm_encoder_layer(config: ModelConfig, training: bool) -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(config).double().train(training)
    theirs = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, dtype=torch.float64).train(training)
    renamed = {
        name.replace("Wqkv.weight", "in_proj_weight").replace("Wqkv.bias", "in_proj_bias"): tensor
        for name, tensor in layer.state_dict().items()
    }
    theirs.load_state_dict(renamed)
    hidden = torch.randn(3, 6, 16, dtype=torch.float64)
    padding = torch.arange(6) >= torch.tensor([6, 4, 1])[:, None]
    want = theirs(hidden, src_key_padding_mask=padding)
    got = layer(hidden[~padding], layout=Layout.of((6, 4, 1), device=hidden.device))
    torch.testing.assert_close(got, want[~padding], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell_embedding", ["cls", "mean"])
def test_padding_and_neighbours_change_nothing(
    build_model: BuildModel, make_batch: MakeBatch, cell_embedding: str
) -> None:
    model = build_model(dtype=torch.float64, cell_embedding=cell_embedding)
    batch = make_batch([9, 3, 1], width=14)
    together, expression = model.embed(batch), model.predict_expression(batch)
    for row, length in enumerate([9, 3, 1]):
        part = (slice(row, row + 1), slice(0, length + 1))
        alone = replace(
            batch, gene_ids=batch.gene_ids[part], values=batch.values[part], padding_mask=batch.padding_mask[part]
        )
        torch.testing.assert_close(model.embed(alone)[0], together[row], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            model.predict_expression(alone)[0], expression[row, : length + 1], rtol=1e-10, atol=1e-10
        )


def test_token_order_changes_nothing(build_model: BuildModel, make_batch: MakeBatch) -> None:
    model, batch = build_model(dtype=torch.float64), make_batch([9, 9])
    order = torch.tensor([0, *(torch.randperm(9) + 1).tolist()])
    shuffled = replace(batch, gene_ids=batch.gene_ids[:, order], values=batch.values[:, order])
    torch.testing.assert_close(model.embed(shuffled), model.embed(batch), rtol=1e-10, atol=1e-10)


def test_cell_embedding_is_cls_or_the_mean_over_real_genes(build_model: BuildModel, make_batch: MakeBatch) -> None:
    batch = make_batch([4, 2])
    hidden = build_model().encode(batch)
    torch.testing.assert_close(build_model().embed(batch), hidden[:, 0])
    mean = build_model(cell_embedding="mean").embed(batch)
    torch.testing.assert_close(mean, torch.stack([hidden[0, 1:5].mean(0), hidden[1, 1:3].mean(0)]))


def test_values_beyond_512_are_clamped(build_model: BuildModel, make_batch: MakeBatch) -> None:
    model, batch = build_model(), make_batch([3])
    clamped = replace(batch, values=torch.full_like(batch.values, 512.0))
    beyond = replace(batch, values=torch.full_like(batch.values, 4000.0))
    below = replace(batch, values=torch.full_like(batch.values, 511.0))
    assert torch.equal(model.encode(beyond), model.encode(clamped))
    assert not torch.equal(model.encode(below), model.encode(clamped))


@pytest.mark.parametrize("unknown_out_proj", [True, False])
def test_an_unknown_gene_is_seen_by_itself_alone(
    build_model: BuildModel, make_generative: MakeGenerative, unknown_out_proj: bool
) -> None:
    model = build_model(unknown_out_proj=unknown_out_proj)
    batch = make_generative([5, 2], [4, 4])
    before = model.forward_generative(batch)
    genes = batch.unknown_gene_ids.clone()
    genes[0, 2] = (genes[0, 2] + 1) % 60
    after = model.forward_generative(replace(batch, unknown_gene_ids=genes))
    changed = torch.zeros(2, 4, dtype=torch.bool)
    changed[0, 2] = True
    assert torch.equal(after.cells_BD, before.cells_BD)
    for name in ("expression", "cell_conditioned"):
        old, new = getattr(before, name), getattr(after, name)
        assert torch.equal(new[~changed], old[~changed])
        assert new[0, 2] != old[0, 2]


def test_targets_are_never_read(build_model: BuildModel, make_generative: MakeGenerative) -> None:
    model, batch = build_model(), make_generative([5, 2], [4, 1])
    before = model.forward_generative(batch)
    blind = model.forward_generative(replace(batch, unknown_targets=torch.full_like(batch.unknown_targets, 1e6)))
    assert torch.equal(before.expression, blind.expression)


def test_generative_padding_and_neighbours_change_nothing(
    build_model: BuildModel, make_generative: MakeGenerative
) -> None:
    model = build_model(dtype=torch.float64)
    batch = make_generative([8, 3], [6, 2])
    together = model.forward_generative(batch)
    known = batch.known
    alone = model.forward_generative(
        GenerativeMinibatch(
            known=Minibatch(
                gene_ids=known.gene_ids[1:, :4],
                values=known.values[1:, :4],
                padding_mask=known.padding_mask[1:, :4],
                cell_ids=known.cell_ids[1:],
            ),
            unknown_gene_ids=batch.unknown_gene_ids[1:, :2],
            unknown_targets=batch.unknown_targets[1:, :2],
            unknown_padding_mask=batch.unknown_padding_mask[1:, :2],
        )
    )
    _assert_close(alone.expression[0], together.expression[1, :2])
    _assert_close(alone.cell_conditioned[0], together.cell_conditioned[1, :2])
    _assert_close(alone.cells_BD[0], together.cells_BD[1])


def _assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_known_genes_are_encoded_as_without_unknown_ones(
    build_model: BuildModel, make_generative: MakeGenerative
) -> None:
    model, batch = build_model(dtype=torch.float64), make_generative([8, 3], [6, 2])
    _assert_close(model.forward_generative(batch).cells_BD, model.embed(batch.known))


def test_cells_too_small_to_hide_a_gene_predict_nothing(build_model: BuildModel, make_batch: MakeBatch) -> None:
    model, known = build_model(), make_batch([1, 1])
    nothing = torch.empty(2, 0)
    output = model.forward_generative(GenerativeMinibatch(known, nothing.long(), nothing, nothing.bool()))
    assert output.expression.shape == output.cell_conditioned.shape == (2, 0)
    assert torch.equal(output.cells_BD, model.embed(known))


def test_cell_conditioned_expression_is_the_published_inner_product(
    build_model: BuildModel, make_generative: MakeGenerative
) -> None:
    model, batch = build_model(dtype=torch.float64), make_generative([5], [4])
    output = model.forward_generative(batch)
    genes = model.encoder(batch.unknown_gene_ids)
    head = model.mvc_decoder
    want = (head.W(torch.sigmoid(head.gene2query(genes))) * output.cells_BD[:, None]).sum(-1)
    _assert_close(output.cell_conditioned, want)


def test_second_pass_reads_the_cell_embedding_instead_of_cls(
    build_model: BuildModel, make_generative: MakeGenerative
) -> None:
    model, batch = build_model(dtype=torch.float64), make_generative([5, 3], [4, 4])
    cells_BD = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    second = model.forward_generative(batch, cell_embedding_BD=cells_BD)
    genes = batch.known.gene_ids.clone()
    genes[:, 0] = 7  # what stands at <cls> is no longer read
    other = replace(batch, known=replace(batch.known, gene_ids=genes))
    assert torch.equal(second.expression, model.forward_generative(other, cell_embedding_BD=cells_BD).expression)
    assert not torch.allclose(second.expression, model.forward_generative(batch).expression)
    second.expression.sum().backward()
    assert cells_BD.grad is not None
    assert cells_BD.grad.abs().min() > 0


def test_every_parameter_but_those_unread_gets_a_gradient(
    build_model: BuildModel, make_generative: MakeGenerative
) -> None:
    model = build_model(num_labels=3)
    output: GenerativeOutput = model.forward_generative(make_generative([5, 3], [4, 2]))
    logits = model.classify(output.cells_BD)
    (output.expression.sum() + output.cell_conditioned.sum() + logits.square().sum()).backward()
    unread = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unread == set()
    assert model.flag_encoder.weight.grad[0].abs().max() == 0
    assert model.flag_encoder.weight.grad[1].abs().max() > 0
    assert model.encoder.embedding.weight.grad[60].abs().max() == 0


def test_dropout_acts_in_training_only(build_model: BuildModel, make_batch: MakeBatch) -> None:
    model, batch = build_model(dropout=0.5), make_batch([9])
    assert torch.equal(model.embed(batch), model.embed(batch))
    model.train()
    assert not torch.equal(model.embed(batch), model.embed(batch))


def test_half_width_weights_take_single_precision_values(
    build_model: BuildModel, make_generative: MakeGenerative
) -> None:
    batch = make_generative([5, 3], [4, 2])
    full = build_model().forward_generative(batch).cells_BD
    half = build_model(dtype=torch.bfloat16).forward_generative(batch).cells_BD
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), full).min() > 0.99


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="width 16 is not a multiple of num_heads 3"):
        ModelConfig(vocabulary_size=63, width=16, num_heads=3)
