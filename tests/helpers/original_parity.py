"""Every array that the original implementation computed from its checkpoints, computed by cytoray and compared.

    python tests/helpers/original_parity.py FOLDER      (or: make parity)

FOLDER holds ``ckpt_*`` (public checkpoints), ``ref_*.npz`` (inputs and outputs), ``tiny_*.h5ad`` and ``tiny.scb``.
Sizes are read from the checkpoints. What is there is compared, whatever else is missing. Exit code 1 if an array
differs beyond its bound, if one is missing, or if one was not compared.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import anndata
import numpy as np
import torch
from torch import Tensor

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CytorayError
from cytoray.model import losses
from cytoray.model.config import DecoderActivation
from cytoray.model.perturbation import predict_perturbed
from cytoray.model.predictor import CellPredictor
from cytoray.model.public_checkpoint import load_public_checkpoint
from cytoray.model.transformer import ScGPT
from cytoray.tokens.binning import bin_rows
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.collator import GenerativeMinibatch, Minibatch
from cytoray.tokens.packed import pack
from cytoray.tokens.panel import mask_tokens, tokenise_panel
from cytoray.tokens.preprocessing import bin_layer, log1p, normalise_total
from cytoray.tokens.tokenizer import CellTokenizer, TokenBuffers, TokenizerConfig, TokenPlan
from cytoray.tokens.vocabulary import GeneVocabulary

VALUE, GRADIENT, EXACT = 1e-5, 1e-4, 0.0
SEEDS = [*range(100), 123, 1234, 12345, 2021, 2022, 2023, 2024, 2025]  # tried where the oracle does not give its own
# What a missing or unsuitable file, array or checkpoint raises: reported, and everything else is still compared.
UNUSABLE = (OSError, LookupError, AssertionError, ValueError, RuntimeError, CytorayError)
ECS_THRESHOLD, RECIPE_THRESHOLD = 0.3, 0.8  # of the constructor, and of the integration recipe


@dataclass
class Oracle:
    """The arrays of one file, and which of them were used."""

    folder: Path
    file: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    differences: list[tuple[str, float, float]] = field(default_factory=list)  # array, difference, bound
    absent: list[str] = field(default_factory=list)  # arrays that should have been compared

    def __post_init__(self) -> None:
        with np.load(self.folder / self.file) as stored:
            self.arrays = {name: stored[name] for name in stored.files}

    def given(self, name: str) -> Any:
        """An input; KeyError that names the file if it does not have it."""
        if name not in self.arrays:
            raise KeyError(f"{self.file} has no array {name}")
        self.used.add(name)
        return self.arrays[name]

    def tensor(self, name: str) -> Tensor:
        """An input as a tensor."""
        return torch.from_numpy(self.given(name))

    def check(self, name: str, got: Any, *, where: Any = None, bound: float = VALUE, label: str = "") -> None:
        """Compare an output with ``got``: the largest difference, divided by 1 + the value it should have."""
        if name not in self.arrays:
            self.absent.append(name)
            return
        self.used.add(name)
        want = np.asarray(self.arrays[name], np.float64)
        values = np.asarray(got.detach().numpy() if isinstance(got, Tensor) else got, np.float64)
        if values.shape != want.shape:
            self.differences.append((f"{name}{label} {want.shape}, not {values.shape}", float("inf"), bound))
            return
        if where is not None:
            kept = np.asarray(where)
            values, want = values[kept], want[kept]
        difference = np.abs(values - want) / (1 + np.abs(want))
        worst = float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
        self.differences.append((f"{name}{label}", worst, bound))

    def holds(self, name: str, condition: Any, label: str) -> None:
        """An output that chance made: what has to hold of it, instead of equality."""
        if name not in self.arrays:
            self.absent.append(name)
            return
        self.used.add(name)
        self.differences.append((f"{name} ({label})", 0.0 if bool(condition) else float("inf"), EXACT))


_loaded: set[str] = set()  # names of the checkpoints that were compared


def load(folder: Path, name: str, **overrides: Any) -> tuple[ScGPT, GeneVocabulary, TokenizerConfig]:
    """A checkpoint of the oracle, without dropout; nothing of it may be missing or left over."""
    _loaded.add(name)
    loaded = load_public_checkpoint(folder / name, overrides={"dropout": 0.0, **overrides})
    report = loaded.report
    assert not [*report.missing, *report.unexpected, *report.reshaped], f"{name}: {report.text()}"
    return loaded.model.eval(), loaded.vocabulary, loaded.tokenizer_config


def minibatch(genes: Tensor, values: Tensor, *, pad_id: int | None, **conditions: Any) -> Minibatch:
    """Cells as the original padded them; None: nothing is padding."""
    mask = torch.zeros_like(genes, dtype=torch.bool) if pad_id is None else genes == pad_id
    return Minibatch(genes, values, mask, np.arange(len(genes), dtype=np.uint64), **conditions)


def every(items: Iterable[Any], work: Callable[[Any], None]) -> None:
    """Work on all items; LookupError that names each failure after the last one."""
    failures = []
    for item in items:
        try:
            work(item)
        except UNUSABLE as error:
            failures.append(str(error))
    if failures:
        raise LookupError("; ".join(failures))


def transformer_model(folder: Path) -> Iterator[Oracle]:
    """The one-pass model in two attention layouts, by every kernel that a CPU has."""
    oracle = Oracle(folder, "ref_transformer_model.npz")
    yield oracle
    every(("ckpt_nn", "ckpt_impl"), functools.partial(_one_checkpoint, oracle, folder))


def _one_checkpoint(oracle: Oracle, folder: Path, checkpoint: str) -> None:
    for backend in ("cell", "sdpa", "flex"):
        model, vocabulary, _ = load(folder, checkpoint, attention_backend=backend)
        batch = minibatch(oracle.tensor("genes"), oracle.tensor("values"), pad_id=vocabulary.pad_id)
        _one_pass(oracle, model, batch, label=f" [{checkpoint}, {backend}]")
    oracle.given("target")  # used by the integration's relative error


def _one_pass(oracle: Oracle, model: ScGPT, batch: Minibatch, *, label: str) -> None:
    real = ~batch.padding_mask
    output = model(batch)
    cells = model.embed(batch)
    assert output.cell_conditioned is not None
    oracle.check("src_key_padding_mask", batch.padding_mask, bound=EXACT, label=label)
    for name in ("hidden", "hidden_fastpath"):
        oracle.check(name, model.encode(batch), where=real, label=label)
    oracle.check("gene_token_embs", model.encoder(batch.gene_ids), where=real, label=label)
    oracle.check("value_embs", model.value_encoder(batch.values), where=real, label=label)
    oracle.check("cell_emb", cells, label=label)
    oracle.check("cell_emb_l2", torch.nn.functional.normalize(cells, dim=-1), label=label)
    oracle.check("mlm_output", output.expression.value, where=real, label=label)
    oracle.check("mvc_output", output.cell_conditioned.value, where=real, label=label)
    oracle.check("cls_output", output.labels_BK, label=label)
    oracle.check("loss_ecs", losses.similarity_loss(cells, threshold=ECS_THRESHOLD).mean, label=label)


def generative(folder: Path) -> Iterator[Oracle]:
    """Both passes of pretraining, with the released weights' quirk."""
    oracle = Oracle(folder, "ref_generative.npz")
    yield oracle
    for backend in ("cell", "sdpa", "flex"):
        model, vocabulary, _ = load(folder, "ckpt_public", attention_backend=backend)
        assert not model.config.unknown_out_proj, "released weights skip out_proj on unknown tokens"
        known = minibatch(oracle.tensor("pcpt_gene"), oracle.tensor("pcpt_expr"), pad_id=vocabulary.pad_id)
        unknown = oracle.tensor("gen_gene")
        batch = GenerativeMinibatch(known, unknown, oracle.tensor("gen_expr_target"), unknown == vocabulary.pad_id)
        _both_passes(oracle, model, batch, label=f" [{backend}]")


def _both_passes(oracle: Oracle, model: ScGPT, batch: GenerativeMinibatch, *, label: str) -> None:
    known, real = ~batch.known.padding_mask, ~batch.unknown_padding_mask
    first = model.forward_generative(batch)
    second = model.forward_generative(batch, cell_embedding_BD=first.cells_BD)
    assert first.cell_conditioned is not None
    oracle.check("gen_preds", first.expression, where=real, label=label)
    oracle.check("gen_preds_second_pass", second.expression, where=real, label=label)
    oracle.check("cell_emb", first.cells_BD, label=label)
    alone = model(batch.known)
    for name in ("pcpt_preds", "pcpt_only_preds"):
        oracle.check(name, alone.expression.value, where=known, label=label)
    joined = torch.cat([alone.cell_conditioned.value, first.cell_conditioned], dim=1)
    oracle.check("mvc_output", joined, where=torch.cat([known, real], dim=1), label=label)
    predictions = {"loss_gen": first.expression, "loss_mvc": first.cell_conditioned, "loss_second": second.expression}
    for name, predicted in predictions.items():
        loss = losses.expression_loss(predicted, batch.unknown_targets, counted_BL=real)
        oracle.check(name, loss.mean, label=label)


def annotation(folder: Path) -> Iterator[Oracle]:
    """Batch norm and classifier."""
    oracle = Oracle(folder, "ref_annotation.npz")
    yield oracle
    model, vocabulary, _ = load(folder, "ckpt_annotation")
    output = model(minibatch(oracle.tensor("genes"), oracle.tensor("values"), pad_id=vocabulary.pad_id))
    assert output.labels_BK is not None
    oracle.check("cls_output", output.labels_BK)
    oracle.check("cell_emb", output.cells_BD)
    oracle.check("loss_cls", losses.classification_loss(output.labels_BK, oracle.tensor("labels")).mean)


def category(folder: Path) -> Iterator[Oracle]:
    """Values as categories."""
    oracle = Oracle(folder, "ref_category.npz")
    yield oracle
    model, vocabulary, _ = load(folder, "ckpt_category")
    batch = minibatch(oracle.tensor("genes"), oracle.tensor("values"), pad_id=vocabulary.pad_id)
    output = model(batch)
    assert output.cell_conditioned is not None
    oracle.check("mlm_output", output.expression.value, where=~batch.padding_mask)
    oracle.check("mvc_output", output.cell_conditioned.value, where=~batch.padding_mask)
    oracle.check("cell_emb", output.cells_BD)


def extra(folder: Path) -> Iterator[Oracle]:
    """The original's pooling, padding included, its contrastive loss and ``generate``."""
    oracle = Oracle(folder, "ref_extra.npz")
    yield oracle
    for name, pooling in (("cell_emb_avg-pool", "mean"), ("cell_emb_w-pool", "weighted")):
        model, vocabulary, _ = load(folder, "ckpt_nn", cell_embedding=pooling, pooling_counts_padding=True)
        batch = minibatch(oracle.tensor("genes"), oracle.tensor("values"), pad_id=vocabulary.pad_id)
        oracle.check(name, model.embed(batch))
    model, _, _ = load(folder, "ckpt_nn")
    cells = model.embed(batch)
    oracle.check("loss_cce", losses.contrastive_loss(cells, model.embed(batch)).mean)
    oracle.check("generate", model.generate(cells, batch).value, where=~batch.padding_mask)


def integration(folder: Path) -> Iterator[Oracle]:
    """DSBN, batch labels, probabilities of zero, discriminator: every loss, and a training step's gradients."""
    oracle, step = Oracle(folder, "ref_integration.npz"), Oracle(folder, "ref_integration_train.npz")
    yield from (oracle, step)
    target = oracle.tensor("target")
    model, vocabulary, config = load(folder, "ckpt_integration")
    labels = oracle.tensor("batch_labels")
    genes, values = oracle.tensor("genes"), oracle.tensor("values")
    batch = minibatch(genes, values, pad_id=vocabulary.pad_id, batch_labels=labels)
    masked, real = values == config.mask_value, ~batch.padding_mask
    terms = _integration_terms(model, batch, target, masked)
    output = model(batch)
    conditioned = output.cell_conditioned
    assert conditioned is not None
    oracle.check("mlm_output", output.expression.value, where=real)
    oracle.check("mlm_zero_probs", output.expression.nonzero_probability, where=real)
    oracle.check("mvc_output", conditioned.value, where=real)
    oracle.check("mvc_zero_probs", conditioned.nonzero_probability, where=real)
    oracle.check("cell_emb", output.cells_BD)
    oracle.check("dab_output", output.batches_BK)
    for name, value in terms.items():
        oracle.check(name, value)
    oracle.check("loss_ecs", terms["term_ecs"] / 10)
    # The original took the targets of before some were set to zero, by which one cannot divide.
    earlier = Oracle(folder, "ref_transformer_model.npz").tensor("target")
    relative = losses.relative_error(output.expression.value, earlier, counted_BL=masked)
    oracle.check("term_mre", relative.mean)
    _integration_step(step, folder, batch, target, masked)


def _integration_terms(model: ScGPT, batch: Minibatch, target: Tensor, masked: Tensor) -> dict[str, Tensor]:
    """The losses of the integration recipe."""
    output = model(batch)
    expression, conditioned = output.expression, output.cell_conditioned
    assert conditioned is not None
    assert expression.nonzero_probability is not None
    assert conditioned.nonzero_probability is not None
    assert output.batches_BK is not None
    assert batch.batch_labels is not None
    similarity = losses.similarity_loss(output.cells_BD, threshold=RECIPE_THRESHOLD).mean
    return {
        "term_gep": losses.expression_loss(expression.value, target, counted_BL=masked).mean,
        "term_gepc": losses.expression_loss(conditioned.value, target, counted_BL=masked).mean,
        "term_nzlp": losses.nonzero_loss(expression.nonzero_probability, target, counted_BL=masked).mean,
        "term_mvc_nzlp": losses.nonzero_loss(conditioned.nonzero_probability, target, counted_BL=masked).mean,
        "term_ecs": 10 * similarity,
        "term_dab": losses.classification_loss(output.batches_BK, batch.batch_labels).mean,
    }


def _integration_step(step: Oracle, folder: Path, batch: Minibatch, target: Tensor, masked: Tensor) -> None:
    """Loss, gradients and running statistics of one step in training mode, padding counted as the original does."""
    assert batch.batch_labels is not None
    model, _, _ = load(folder, "ckpt_integration", norm_counts_padding=True)
    output = model.train()(batch)
    model, _, _ = load(folder, "ckpt_integration", norm_counts_padding=True)  # with statistics not yet moved
    model.train()
    with torch.enable_grad():
        total = torch.stack(list(_integration_terms(model, batch, target, masked).values())).sum()
        total.backward()
    step.check("total", total)
    step.check("dab_output", output.batches_BK)
    step.check("mlm_output", output.expression.value, where=~batch.padding_mask)
    parameters = dict(model.named_parameters())
    for name in step.arrays:
        if name.startswith("grad."):
            ours = name.removeprefix("grad.").replace("in_proj_weight", "Wqkv.weight")
            step.check(name, parameters[ours].grad, bound=GRADIENT)
    norm = model.dsbn.bns[int(batch.batch_labels[0])]
    step.check("running_mean", norm.running_mean)
    step.check("running_var", norm.running_var)


def multiomic(folder: Path) -> Iterator[Oracle]:
    """Modalities and batch labels at the decoders."""
    oracle = Oracle(folder, "ref_multiomic.npz")
    yield oracle
    model, vocabulary, _ = load(folder, "ckpt_multiomic")
    conditions = {"batch_labels": oracle.tensor("batch_labels"), "modalities": oracle.tensor("mod_types")}
    batch = minibatch(oracle.tensor("genes"), oracle.tensor("values"), pad_id=vocabulary.pad_id, **conditions)
    output = model(batch)
    assert output.cell_conditioned is not None
    oracle.check("mlm_output", output.expression.value, where=~batch.padding_mask)
    oracle.check("mvc_output", output.cell_conditioned.value, where=~batch.padding_mask)
    oracle.check("dab_output", output.batches_BK)
    oracle.check("cell_emb", output.cells_BD)


def generator(folder: Path) -> Iterator[Oracle]:
    """The perturbation models; genes outside of the vocabulary are not masked, as in the original."""
    oracle = Oracle(folder, "ref_generator.npz")
    yield oracle
    kinds = sorted({name.removesuffix("_mlm_output") for name in oracle.arrays if name.endswith("_mlm_output")})
    every(kinds, functools.partial(_one_generator, oracle, folder))


def _one_generator(oracle: Oracle, folder: Path, kind: str) -> None:
    """One kind of perturbation model."""
    model, _, _ = load(folder, _generator_name(kind), **_generator_options(kind))
    genes, values, flags = (oracle.tensor(name) for name in ("gene_ids", "values", "pert_flags"))
    assert np.array_equal(oracle.given("raw_gene_ids"), genes[0]), "gene_ids are not raw_gene_ids"
    batch = minibatch(genes, values, pad_id=None, perturbations=flags)
    output = model(batch)
    assert output.cell_conditioned is not None, f"{kind} has no cell-conditioned decoder"
    oracle.check(f"{kind}_mlm_output", output.expression.value)
    oracle.check(f"{kind}_mvc_output", output.cell_conditioned.value)
    oracle.check(f"{kind}_cell_emb", output.cells_BD)
    similarity = losses.similarity_loss(output.cells_BD, threshold=ECS_THRESHOLD)
    oracle.check(f"{kind}_loss_ecs", similarity.mean)
    oracle.check(f"{kind}_pred_perturb_all", predict_perturbed(model, batch))
    oracle.check(f"{kind}_pred_perturb_batchwise", predict_perturbed(model, batch, panel="expressed"))


def _generator_name(kind: str) -> str:
    """The checkpoint of one kind of perturbation model."""
    return "ckpt_generator" if kind == "plain" else f"ckpt_generator_{kind}"


def _generator_options(kind: str) -> dict[str, Any]:
    """The options of a perturbation model's decoder that its tensors do not show, from the words of its kind."""
    words = kind.lower().split("_")
    activations = {name.lower(): name for name in get_args(DecoderActivation)}
    activation = next((activations[word] for word in words if word in activations), None)
    return {"adaptive_bias": "adaptive" in words, "decoder_activation": activation}


def binning_and_collating(folder: Path) -> Iterator[Oracle]:
    """Binning, exactly; collating and masking, up to the draws of an unknown generator."""
    oracle = Oracle(folder, "ref_tokenize.npz")
    yield oracle
    steps: list[Callable[[], None]] = [
        functools.partial(_check_bins, oracle, name, n_bins)
        for name in ("cont", "count", "one", "same", "zero")
        for n_bins in (51, 5)
    ]
    steps.append(lambda: _check_collator(oracle, _vocabulary(folder)))
    steps.append(lambda: _check_panel(oracle))
    every(steps, lambda step: step())


def _vocabulary(folder: Path) -> GeneVocabulary:
    return GeneVocabulary.from_json((folder / "ckpt_public" / "vocab.json").read_bytes())


def _bins(row: np.ndarray, n_bins: int) -> np.ndarray:
    """Bins of one row, zeros included, by NumPy's global generator."""
    binned = np.zeros_like(row)
    values = row[row > 0].astype(np.float32)
    binned[row > 0] = bin_rows(values, np.array([0, len(values)]), n_bins=n_bins)
    return binned


def _check_bins(oracle: Oracle, name: str, n_bins: int) -> None:
    row, output = oracle.given(f"in_{name}"), f"bin{n_bins}_{name}"
    if output not in oracle.arrays:
        oracle.absent.append(output)
        return
    want = oracle.arrays[output]
    if name in ("one", "same"):  # nothing but ties
        inside = (want[row > 0] >= 1) & (want[row > 0] <= n_bins - 1)
        oracle.holds(output, inside.all() and not want[row == 0].any(), "any bin is open")
        return
    _check_drawn(oracle, row, n_bins, output)
    if name == "count" and n_bins == 51:
        low, high = oracle.given("count_tie_min"), oracle.given("count_tie_max")
        drawn = np.stack([_bins(row, n_bins) for _ in range(4000)])
        oracle.holds("count_tie_min", (drawn.min(axis=0) >= low).all(), "never below")
        oracle.holds("count_tie_max", (drawn.max(axis=0) <= high).all(), "never above")
        deviation = np.abs(drawn.mean(axis=0, dtype=np.float64) - oracle.given("count_tie_mean"))
        oracle.holds(
            "count_tie_mean",
            (deviation <= 0.1 * (high - low) + 1e-6).all(),
            "uniform over the ties, as far as the original's own sample tells",
        )


def _check_drawn(oracle: Oracle, row: np.ndarray, n_bins: int, output: str) -> None:
    """Exactly the bins of the original's generator, or, if its seed is unknown, bins that the ties allow."""
    seeds = [int(oracle.given("seed"))] if "seed" in oracle.arrays else SEEDS
    for seed in seeds:
        np.random.seed(seed)  # noqa: NPY002 - the generator that the original draws from
        bins = _bins(row, n_bins)
        if np.array_equal(bins, oracle.arrays[output]) or len(seeds) == 1:
            oracle.check(output, bins, bound=EXACT, label=f" [global generator, seed {seed}]")
            return
    edges = np.quantile(row[row > 0], np.linspace(0, 1, n_bins - 1))
    most = (edges <= row[:, None]).sum(axis=1)
    fewest = np.minimum((edges < row[:, None]).sum(axis=1) + 1, most)
    want = oracle.arrays[output][row > 0]
    allowed = (want >= fewest[row > 0]) & (want <= most[row > 0])
    oracle.holds(output, allowed.all(), f"within its ties; none of {len(seeds)} seeds draws it")


def _cells(oracle: Oracle, prefix: str) -> SparseCells:
    """The three cells that the collators were given, genes in ascending order."""
    genes = [oracle.given(f"{prefix}_genes{i}")[1:] for i in range(3)]
    values = [oracle.given(f"{prefix}_expr{i}")[1:] for i in range(3)]
    orders = [np.argsort(ids) for ids in genes]
    ids = np.concatenate([row[order] for row, order in zip(genes, orders, strict=True)]).astype(np.int32)
    expression = np.concatenate([row[order] for row, order in zip(values, orders, strict=True)])
    starts = np.concatenate([[0], np.cumsum([len(row) for row in genes])]).astype(np.int64)
    return SparseCells(ids, expression.astype(np.float32), starts, np.arange(3, dtype=np.uint64))


def _check_collator(oracle: Oracle, vocabulary: GeneVocabulary) -> None:
    """The embedding collator: every gene's bin, lengths, sampling and masking."""
    cells, genes, values = _cells(oracle, "coll_in"), oracle.given("coll_out_gene"), oracle.given("coll_out_expr")
    config = TokenizerConfig(max_length=genes.shape[1])
    tokens = CellTokenizer(vocabulary, config)(cells)
    bins = CellTokenizer(vocabulary, config).bin_cells(cells)
    for row in range(3):
        real = genes[row] != vocabulary.pad_id
        oracle.holds("coll_out_gene", real.sum() == tokens.lengths[row], f"length of cell {row}")
        span = slice(cells.indptr[row], cells.indptr[row + 1])
        known = dict(zip(cells.gene_ids[span].tolist(), bins[span].tolist(), strict=True))
        known[vocabulary.cls_id] = config.cls_value
        want = [known[gene] for gene in genes[row][real].tolist()]
        oracle.holds("coll_out_expr", np.array_equal(values[row][real], want), f"bins of cell {row}")
        ours = tokens.take(np.array([row]))
        oracle.holds("coll_out_expr", [known[g] for g in ours.gene_ids.tolist()] == ours.values.tolist(), "ours")
        oracle.holds("coll_out_expr", (values[row][~real] == config.pad_value).all(), "padding")
    masked = oracle.given("coll_out_masked_expr")
    hidden = masked == config.mask_value
    oracle.holds("coll_out_masked_expr", np.array_equal(masked[~hidden], values[~hidden]), "the rest stays")
    oracle.holds("coll_out_masked_expr", not hidden[:, 0].any() and (values[hidden] > 0).all(), "genes only")


def _check_panel(oracle: Oracle) -> None:
    """The fine-tuning tokeniser: panels with and without zeros, and exact masking."""
    panel = oracle.given("tok_in")
    gene_ids, ids = np.arange(panel.shape[1], dtype=np.int32), np.arange(len(panel), dtype=np.uint64)
    for kind, zeros in (("zero", True), ("nz", False)):
        genes, values = oracle.given(f"tok_{kind}_genes"), oracle.given(f"tok_{kind}_values")
        cls_id = int(genes[0, 0])
        config = TokenizerConfig(max_length=max(genes.shape[1], 2), cls_value=0.0)
        tokens = tokenise_panel(panel, gene_ids, ids, config=config, cls_id=cls_id, include_zeros=zeros)
        for row in range(len(panel)):
            real = genes[row] < cls_id - 1
            name = f"tok_{kind}_genes"
            oracle.holds(name, real.sum() == tokens.lengths[row] - 1, f"genes of cell {row}")
            oracle.holds(f"tok_{kind}_values", (values[row][real] == panel[row][genes[row][real]]).all(), "values")
            ours = tokens.take(np.array([row]))
            oracle.holds(name, (panel[row][ours.gene_ids[1:]] == ours.values[1:]).all(), "ours")
            if not zeros:
                oracle.holds(name, np.array_equal(np.sort(genes[row][real]), ours.gene_ids[1:]), "the same genes")
    hidden = oracle.given("tok_nz_masked") == config.mask_value
    ours = mask_tokens(tokens, 0.4, config=config, mask_cls=True)
    counts = [
        int((ours[a:b] == config.mask_value).sum()) for a, b in zip(tokens.indptr, tokens.indptr[1:], strict=False)
    ]
    oracle.holds("tok_nz_masked", counts == hidden.sum(axis=1).tolist(), "exactly int(n * 0.4) of n")


def splitting(folder: Path) -> Iterator[Oracle]:
    """The pretraining collator: known and unknown parts of fixed lengths."""
    oracle = Oracle(folder, "ref_collator_both.npz")
    yield oracle
    vocabulary = _vocabulary(folder)
    cells = _cells(oracle, "in")
    genes, values = oracle.given("out_pcpt_gene"), oracle.given("out_pcpt_expr")
    unknown, targets = oracle.given("out_gen_gene"), oracle.given("out_gen_expr_target")
    width, unknown_width = genes.shape[1], unknown.shape[1]
    ratio = next(p for p in (0.25, 0.5, 0.75) if int((width + unknown_width - 1) * p) == unknown_width)
    tokenizer = CellTokenizer(vocabulary, TokenizerConfig(max_length=width + unknown_width))
    bins = tokenizer.bin_cells(cells)
    buffers = TokenBuffers(
        *(np.empty(3 * n, t) for n, t in ((width, np.int32), (width, np.float32))),
        None,
        *(np.empty(3 * n, t) for n, t in ((unknown_width, np.int32), (unknown_width, np.float32))),
    )
    plan = TokenPlan.padded(3, width, unknown_width=unknown_width, ratios=np.full(3, ratio))
    tokenizer.fill(pack(cells, counts=False), np.arange(3), np.zeros(3, np.int64), plan, buffers)
    ours = {"out_pcpt_gene": buffers.gene_ids.reshape(3, -1), "out_gen_gene": buffers.unknown_gene_ids.reshape(3, -1)}
    pairs = {"out_pcpt_gene": ("out_pcpt_expr", values), "out_gen_gene": ("out_gen_expr_target", targets)}
    for row in range(3):
        span = slice(cells.indptr[row], cells.indptr[row + 1])
        known = dict(zip(cells.gene_ids[span].tolist(), bins[span].tolist(), strict=True))
        known |= {vocabulary.cls_id: -2.0, vocabulary.pad_id: -2.0}
        for name, theirs in (("out_pcpt_gene", genes), ("out_gen_gene", unknown)):
            same = (ours[name][row] == vocabulary.pad_id).sum() == (theirs[row] == vocabulary.pad_id).sum()
            oracle.holds(name, same, f"length of cell {row}")
            expression, stored = pairs[name]
            want = [known[gene] for gene in theirs[row].tolist()]
            oracle.holds(expression, np.array_equal(stored[row], want), f"bins of cell {row}")
        both = [row_ids[row] for row_ids in ours.values()]
        split = np.concatenate(both)
        split = split[split != vocabulary.pad_id]
        oracle.holds("out_gen_gene", len(np.unique(split)) == len(split), "no gene in both parts")


def embedding(folder: Path) -> Iterator[Oracle]:
    """``embed_data`` from file to embedding, and the preprocessor's layers (genes of fewer than 3 counts left out)."""
    oracle = Oracle(folder, "ref_embed_data.npz")
    yield oracle
    data = anndata.read_h5ad(folder / "tiny_continuous.h5ad")
    loaded = load_public_checkpoint(folder / "ckpt_nn")
    names, matrix = np.array(data.var["feature_name"], str), _csr(data.X)
    mapping = loaded.vocabulary.map_genes(names.tolist())
    cells = mapping.apply(matrix.data, matrix.indices, matrix.indptr, np.arange(data.n_obs, dtype=np.uint64))
    oracle.check("X_scGPT", CellPredictor(loaded.to_bundle(), pooling="cls").predict(cells).embeddings)
    kept = np.flatnonzero((mapping.ids >= 0) & (np.asarray(matrix.sum(axis=0)).ravel() >= 3))
    oracle.check("n_genes_kept", len(kept), bound=EXACT)
    oracle.holds("kept", names[kept].tolist() == oracle.arrays["kept"].tolist(), "genes")
    normed = log1p(normalise_total(_csr(matrix[:, kept])))
    for name in ("X_normed", "X_log1p"):  # one array in the original: its log1p changes what it was given
        oracle.check(name, normed.toarray())
    bins, edges = bin_layer(normed)
    oracle.check("X_binned", bins.toarray(), bound=EXACT)
    oracle.check("bin_edges", edges)


def _csr(matrix: Any) -> Any:
    from scipy import sparse

    return sparse.csr_matrix(matrix)


def scb_folder(folder: Path) -> int:
    """In how many entries the scb directory differs from the h5ad that it was made of."""
    data = anndata.read_h5ad(folder / "tiny_continuous.h5ad")
    names = [str(name) for name in data.var["feature_name"]]
    with open_source(SourceConfig(uri=str(folder / "tiny.scb"))) as reader:
        rows = reader.read_rows(0, reader.describe().num_cells)
        columns = {name: column for column, name in enumerate(reader.gene_names)}
    shared = [name for name in names if name in columns]
    want = _csr(data.X)[:, [names.index(name) for name in shared]]
    return int((rows[:, [columns[name] for name in shared]] != want).nnz)


CHECKS: tuple[Callable[[Path], Iterator[Oracle]], ...] = (
    transformer_model, generative, annotation, category, extra, integration, multiomic, generator,
    binning_and_collating, splitting, embedding,
)  # fmt: skip


def run_checks(folder: Path) -> tuple[list[tuple[str, str, float, float]], list[str]]:
    """(file, array, difference, bound) of everything compared, and what was not compared."""
    rows, seen, unused = [], {"tiny.scb", "tiny_counts.h5ad", "tiny_continuous.h5ad"}, list[str]()
    _loaded.clear()
    with torch.no_grad():
        for check in CHECKS:
            oracles = list[Oracle]()
            try:
                for oracle in check(folder):
                    oracles.append(oracle)  # those before a failure are kept
            except UNUSABLE as error:
                unused.append(f"{check.__name__} stopped: {error}")
            for oracle in oracles:
                seen.add(oracle.file)
                rows += [(oracle.file, *difference) for difference in oracle.differences]
                unused += [f"{oracle.file}: {name} is missing" for name in oracle.absent]
                unused += [f"{oracle.file}: {name}" for name in sorted(oracle.arrays.keys() - oracle.used)]
    try:
        rows.append(("tiny.scb", "the cells of tiny_continuous.h5ad", float(scb_folder(folder)), EXACT))
    except UNUSABLE as error:
        unused.append(f"tiny.scb: {error}")
    known = seen | _loaded
    unused += sorted(path.name for path in folder.iterdir() if path.name not in known and path.suffix != ".md")
    return rows, unused


def main() -> int:
    """Print a line per array; 1 if anything differs or was not compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not folder.is_dir():
        print(f"error: {folder} is not there: agreement with the original implementation cannot be checked.")
        return 2
    rows, unused = run_checks(folder)
    failed = [row for row in rows if not row[2] <= row[3]]
    for file, array, difference, bound in rows:
        verdict = "" if difference <= bound else "   BEYOND ITS BOUND"
        print(f"{file:28} {array:60} {difference:9.2e} <= {bound:.0e}{verdict}")
    for name in unused:
        print(f"NOT COMPARED: {name}")
    print(f"{len(rows)} comparisons, {len(failed)} beyond their bounds, {len(unused)} arrays or files not compared")
    return 1 if failed or unused else 0


if __name__ == "__main__":
    sys.exit(main())
