"""The original scGPT's computational path in plain torch: tokenising, embedding, generative pretraining on a CPU.

Written from a description of what the original executes: its per-cell Python loops, padding and dense masks are kept,
as they are what is measured. Only flash attention among known tokens, which needs a GPU, is torch's own here.
"""

# C cells, B cells per batch, L tokens of a cell (P known and G unknown), S tokens of either kind, n genes of one cell
# D width, F feed-forward width, V vocabulary size, H heads

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_BINS, MAX_LENGTH, MAX_VALUE, CLIP_NORM = 51, 1_200, 512, 1.0
PAD_ID, CLS_ID, PAD_VALUE = 60_694, 60_695, -2

Example = dict[str, Tensor]  # "genes" int64 (1 + n,), "expressions" float32 (1 + n,): <cls> first


@dataclass(frozen=True)
class TokenBatch:
    """Padded tokens of a batch of cells."""

    genes: Tensor  # (B, S) int64
    values: Tensor  # (B, S) float32
    padding: Tensor  # (B, S) bool, True = pad


@dataclass(frozen=True)
class GenerativeBatch:
    """Tokens whose value is shown, ``<cls>`` first, and those whose value is to be predicted."""

    known: TokenBatch  # S = P
    unknown: TokenBatch  # S = G; the values are the targets


class GeneEncoder(nn.Module):
    """Embedding of gene ids, layer-normalised."""

    def __init__(self, vocabulary_size: int, width: int, pad_id: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=pad_id)
        self.enc_norm = nn.LayerNorm(width)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, genes: Tensor) -> Tensor:
        """(B, S) -> (B, S, D)."""
        return self.enc_norm(self.embedding(genes))


class ValueEncoder(nn.Module):
    """Embedding of binned values as ordinary numbers (style ``continuous``)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, width)
        self.linear2 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """(B, S) -> (B, S, D)."""
        hidden = F.relu(self.linear1(values.unsqueeze(-1).clamp(max=MAX_VALUE)))
        return self.dropout(self.norm(self.linear2(hidden)))


def _expression_decoder(width: int) -> nn.Sequential:
    """Expression of every token from its hidden state, (B, S, D) -> (B, S)."""
    hidden = (nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width), nn.LeakyReLU())
    return nn.Sequential(OrderedDict(fc=nn.Sequential(*hidden, nn.Linear(width, 1)), squeeze=nn.Flatten(-2)))


class MVCDecoder(nn.Module):
    """Expression of genes from the cell embedding (style ``inner product``), ``W`` applied to every token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gene2query = nn.Linear(width, width)
        self.W = nn.Linear(width, width, bias=False)

    def forward(self, cells: Tensor, genes: Tensor) -> Tensor:
        """(B, D), (B, S, D) -> (B, S)."""
        queries = torch.sigmoid(self.gene2query(genes))
        return torch.bmm(self.W(queries), cells.unsqueeze(2)).squeeze(2)


class OriginalModel(nn.Module):
    """scGPT as the original builds it without flash attention; its weights have the names of the torch layout."""

    identity: Tensor

    def __init__(
        self, vocabulary_size: int, width: int = 512, num_heads: int = 8, feedforward_width: int = 512,
        num_layers: int = 12, dropout: float = 0.2, pad_id: int = PAD_ID,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pad_id = pad_id
        self.encoder = GeneEncoder(vocabulary_size, width, pad_id)
        self.flag_encoder = nn.Embedding(2, width)
        self.value_encoder = ValueEncoder(width, dropout)
        layer = nn.TransformerEncoderLayer(width, num_heads, feedforward_width, dropout, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers)
        self.decoder = _expression_decoder(width)
        self.mvc_decoder = MVCDecoder(width)
        self.register_buffer("identity", torch.eye(width), persistent=False)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Hidden states (B, L, D); those of pads mean nothing."""
        tokens = self.encoder(batch.genes) + self.value_encoder(batch.values)
        return self.transformer_encoder(tokens, src_key_padding_mask=batch.padding)


def bin_values(values: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Bins 1 to ``num_bins`` - 1 of one cell's non-zero values (n,), ties drawn with numpy's global generator."""
    edges = np.quantile(values, np.linspace(0, 1, num_bins - 1))
    upper, lower = np.digitize(values, edges), np.digitize(values, edges, right=True)
    draws = np.random.rand(len(values))  # noqa: NPY002 - the original's generator
    return np.ceil(draws * (lower - upper) + upper).astype(np.int64)


def make_example(gene_ids: np.ndarray, counts: np.ndarray, *, cls_id: int = CLS_ID) -> Example:
    """One cell's expressed genes (n,) as the collators want them, ``<cls>`` with the pad value first."""
    genes, expressions = np.insert(gene_ids, 0, cls_id), np.insert(counts.astype(np.float32), 0, PAD_VALUE)
    return {"genes": torch.from_numpy(genes).long(), "expressions": torch.from_numpy(expressions)}


def collate(examples: Sequence[Example], *, pad_id: int = PAD_ID, max_length: int = MAX_LENGTH) -> TokenBatch:
    """Bin every cell and sample or pad it to the batch's longest, at most ``max_length``."""
    length = min(max_length, max(len(example["genes"]) for example in examples))
    return _stack([_fit(*_binned(example), length, pad_id) for example in examples], pad_id)


def tokenise(examples: Sequence[Example], *, batch_size: int = 64, pad_id: int = PAD_ID) -> Iterator[TokenBatch]:
    """Batches in order, collated when asked for; the examples are left as they are and can be used again."""
    for start in range(0, len(examples), batch_size):
        yield collate(examples[start : start + batch_size], pad_id=pad_id)


def collate_generative(
    examples: Sequence[Example], ratio: float, *, pad_id: int = PAD_ID, max_length: int = MAX_LENGTH
) -> GenerativeBatch:
    """Bin and split every cell at random, ``ratio`` of its genes unknown; P and G are the same for the whole batch."""
    length = min(max_length, max(len(example["genes"]) for example in examples))
    num_unknown = int((length - 1) * ratio)
    known, unknown = [], []
    for example in examples:
        genes, values = _binned(example)
        order = torch.randperm(len(genes) - 1) + 1
        cut = int(len(order) * ratio)
        shown = torch.cat([torch.arange(1), order[cut:]])
        known.append(_fit(genes[shown], values[shown], length - num_unknown, pad_id))
        unknown.append(_fit(genes[order[:cut]], values[order[:cut]], num_unknown, pad_id))
    return GenerativeBatch(known=_stack(known, pad_id), unknown=_stack(unknown, pad_id))


def _binned(example: Example) -> tuple[Tensor, Tensor]:
    """Gene ids and binned values of a cell; the original overwrites the example's values, this copies them first."""
    values = example["expressions"].clone()
    values[1:] = torch.from_numpy(bin_values(values[1:].numpy()))
    return example["genes"], values


def _fit(genes: Tensor, values: Tensor, length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Exactly ``length`` tokens: the first one and a random choice of the rest, or all and pads."""
    missing = length - len(genes)
    if missing >= 0:
        return F.pad(genes, (0, missing), value=pad_id), F.pad(values, (0, missing), value=PAD_VALUE)
    chosen = torch.cat([torch.arange(1), torch.randperm(len(genes) - 1)[: length - 1] + 1])
    return genes[chosen], values[chosen]


def _stack(cells: Sequence[tuple[Tensor, Tensor]], pad_id: int) -> TokenBatch:
    """Cells of one length as a batch."""
    genes = torch.stack([genes for genes, _ in cells])
    return TokenBatch(genes=genes, values=torch.stack([values for _, values in cells]), padding=genes.eq(pad_id))


def embed(
    model: OriginalModel, examples: Sequence[Example], *, mask_fast_path: bool, batch_size: int = 64
) -> np.ndarray:
    """Zero-shot cell embeddings (C, D), L2-normalised, as ``embed_data`` makes them, but without loader workers.

    ``mask_fast_path``: True takes torch's fused encoder path, as the original does; False goes through masked SDPA.
    """
    model.eval()
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(mask_fast_path)
    try:
        with torch.no_grad():
            batches = tokenise(examples, batch_size=batch_size, pad_id=model.pad_id)
            embeddings = np.concatenate([model(batch)[:, 0].numpy().copy() for batch in batches])
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def generative_forward(
    model: OriginalModel, batch: GenerativeBatch, *, cells: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Expression (B, P + G), genes (B, P + G, D), cells (B, D); a second pass puts its ``cells`` at ``<cls>``."""
    genes = [model.encoder(batch.known.genes), model.encoder(batch.unknown.genes)]
    known = genes[0] + model.value_encoder(batch.known.values)
    unknown = genes[1] + model.flag_encoder(torch.tensor(1)).expand_as(genes[1])
    if cells is not None:
        known[:, 0] = cells
    for layer in model.transformer_encoder.layers:
        known, unknown = _split_layer(layer, known, unknown, batch, model.identity)
    return model.decoder(torch.cat([known, unknown], dim=1)), torch.cat(genes, dim=1), known[:, 0]


def _split_layer(
    layer: nn.TransformerEncoderLayer, known: Tensor, unknown: Tensor, batch: GenerativeBatch, identity: Tensor
) -> tuple[Tensor, Tensor]:
    """One encoder layer: known tokens (B, P, D) see each other, unknown ones (B, G, D) the known and themselves.

    Only what known tokens gather goes through ``out_proj``: the released weights were trained like that.
    """
    attention = layer.self_attn
    known_qkv = F.linear(known, attention.in_proj_weight, attention.in_proj_bias)
    unknown_qkv = F.linear(unknown, attention.in_proj_weight, attention.in_proj_bias)
    gathered = attention.out_proj(_attend_among_known(attention, known_qkv, batch.known.padding))
    known = _finish_layer(layer, known, gathered)
    return known, _finish_layer(layer, unknown, _attend_across(attention, known_qkv, unknown_qkv, batch, identity))


def _attend_among_known(attention: nn.MultiheadAttention, qkv: Tensor, padding: Tensor) -> Tensor:
    """Self-attention of known tokens, (B, P, 3D) -> (B, P, D)."""
    queries, keys, values = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    allowed = ~padding[:, None, None] if padding.any().item() else None
    dropout = attention.dropout if attention.training else 0.0
    context = F.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, dropout_p=dropout)
    return context.transpose(1, 2).flatten(2)


def _attend_across(
    attention: nn.MultiheadAttention, known_qkv: Tensor, unknown_qkv: Tensor, batch: GenerativeBatch, identity: Tensor
) -> Tensor:
    """Attention of unknown tokens (B, G, D) to all keys (B, P + G, D), masked but for the known and their own.

    Like the original it multiplies by four identity matrices and asks for the weights, which nobody looks at.
    """
    queries = unknown_qkv.chunk(3, dim=-1)[0].transpose(0, 1)
    _, keys, values = torch.cat([known_qkv, unknown_qkv], dim=1).transpose(0, 1).chunk(3, dim=-1)
    others = ~torch.eye(len(queries), dtype=torch.bool)
    forbidden = torch.cat([others.new_zeros(len(others), known_qkv.shape[1]), others], dim=1)
    padding = torch.cat([batch.known.padding, batch.unknown.padding], dim=1)
    context, _ = F.multi_head_attention_forward(
        queries.contiguous(), keys.contiguous(), values.contiguous(),  # else torch makes slow bmm of the projections
        attention.embed_dim, attention.num_heads, in_proj_weight=None, in_proj_bias=None, bias_k=None, bias_v=None,
        add_zero_attn=False, dropout_p=attention.dropout, out_proj_weight=identity, out_proj_bias=None,
        training=attention.training, key_padding_mask=padding if padding.any().item() else None, need_weights=True,
        attn_mask=forbidden, use_separate_proj_weight=True, q_proj_weight=identity, k_proj_weight=identity,
        v_proj_weight=identity,
    )  # fmt: skip
    return context.transpose(0, 1)


def _finish_layer(layer: nn.TransformerEncoderLayer, tokens: Tensor, gathered: Tensor) -> Tensor:
    """Post-norm residual and feed-forward of one part (B, S, D)."""
    tokens = layer.norm1(tokens + layer.dropout1(gathered))
    inner = layer.dropout(F.relu(layer.linear1(tokens)))
    return layer.norm2(tokens + layer.dropout2(layer.linear2(inner)))


def masked_mse(predicted: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error of the tokens that are counted."""
    return (((predicted - target) * counted.float()) ** 2).sum() / counted.sum()


def generative_losses(model: OriginalModel, batch: GenerativeBatch, *, second_pass: bool = True) -> dict[str, Tensor]:
    """The terms of the generative objective: ``gen``, ``mvc`` and, from the detached cell embedding, ``second``."""
    known, target, counted = batch.known.genes.shape[1], batch.unknown.values, ~batch.unknown.padding
    expression, genes, cells = generative_forward(model, batch)
    losses = {"gen": masked_mse(expression[:, known:], target, counted)}
    losses["mvc"] = masked_mse(model.mvc_decoder(cells, genes)[:, known:], target, counted)
    if second_pass:
        expression, _, _ = generative_forward(model, batch, cells=cells.detach())
        losses["second"] = masked_mse(expression[:, known:], target, counted)
    return losses


def generative_step(
    model: OriginalModel, batch: GenerativeBatch, optimizer: torch.optim.Optimizer, *, second_pass: bool = True
) -> float:
    """One training step in float32 and its loss; the original's optimiser is Adam with lr 1e-4."""
    model.train()
    optimizer.zero_grad()
    loss = torch.stack(list(generative_losses(model, batch, second_pass=second_pass).values())).sum()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    return loss.item()
