"""``scGPT``: from an AnnData, or a file of cells, to embeddings in three lines."""

# C cells, L tokens of a cell, D width, H heads

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytoray.api.config import scGPTConfig
from cytoray.api.dataset import Request, build_dataset, report_empty_cells, scGPTDataset
from cytoray.api.genes import contextual_embeddings, static_embeddings
from cytoray.api.inference import Inference, watched
from cytoray.api.variable_genes import FLAVORS, Flavor
from cytoray.api.weights import adapted, in_force, load_weights, on_device, refuse_conditions
from cytoray.errors import ConfigError, CorpusError, ModelError
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import Pooling
from cytoray.model.fitting import MOST_TOKENS
from cytoray.model.predictor import CellPredictor

if TYPE_CHECKING:
    import anndata
    from matplotlib.figure import Figure

Float32 = npt.NDArray[np.float32]
KEY, MADE_BY = "X_scGPT", "_model"  # in obsm; the same and this ending in uns
_POOLING: dict[str, Pooling] = {"cell": "mean", "cls": "cls"}


class scGPT:
    """A model with its vocabulary and tokens (``bundle``), and how it is used (``config``)."""

    def __init__(self, configurer: scGPTConfig | None = None) -> None:
        """Load the weights that ``configurer.model`` names; without it, use random weights and warn.

        Raises ConfigError, NotFoundError, DigestError, RegistryError or ModelError that names what is wrong.
        """
        self._settings = configurer or scGPTConfig()
        self.bundle = load_weights(self._settings)

    @classmethod
    def from_bundle(cls, bundle: ModelBundle, *, configurer: scGPTConfig | None = None) -> Self:
        """Use a bundle in memory, which is not changed; ``configurer.model`` is ignored."""
        self = cls.__new__(cls)
        self._settings = configurer or scGPTConfig()
        self.bundle = on_device(adapted(bundle, self._settings), self._settings)
        return self

    @property
    def config(self) -> scGPTConfig:
        """The configuration in force: arguments that were left out have the values of the weights."""
        return in_force(self._settings, self.bundle)

    def __repr__(self) -> str:
        """Size, vocabulary and origin in one line."""
        shape, source = self.bundle.model.config, self._settings.model or self.bundle.lineage.get("source", "memory")
        size = f"{shape.num_layers} layers of width {shape.width}, {shape.vocabulary_size:,} tokens"
        return f"{type(self).__name__}({size}, from {source})"

    def process_data(
        self,
        adata: anndata.AnnData | str | Path,
        gene_names: str = "index",
        fine_tuning: bool = False,
        n_top_genes: int = 1800,
        flavor: Flavor = "seurat_v3",
        use_batch_labels: bool | str = False,
        use_raw_counts: bool = True,
        *,
        matrix: str = "auto",
    ) -> scGPTDataset:
        """Check C cells and map their genes to the model's; the AnnData is neither changed nor made dense.

        ``adata``: an AnnData (CSR, CSC or dense; in memory or backed), or the path or s3:// URI of a file that cytoray
        reads. Values are read some 2,000 cells at a time; a CSC matrix in memory is converted to CSR once, which takes
        a copy. ``matrix`` is auto (the rule of an ingest: raw counts first), X, raw.X or layers/NAME. ``gene_names``:
        "index", or the column of var with symbols or Ensembl ids (the other kind is used as well if var has it); genes
        that share a symbol are summed. ``fine_tuning`` keeps the ``n_top_genes`` most variable genes by ``flavor``;
        their values are unchanged. ``use_batch_labels``: column of obs, or True for ``batch``. ``use_raw_counts`` False
        accepts any non-negative values: bins depend on ranks only.

        Raises CorpusError that names cell and gene of the first value that is not finite, negative or not an integer,
        or the columns if the requested one is missing; ModelError if no gene is known, or by ``empty_cells``.
        """
        if n_top_genes < 1 or flavor not in FLAVORS:
            raise ConfigError(
                f"n_top_genes is {n_top_genes}, flavor {flavor!r}.",
                remedy=f"n_top_genes is at least 1, flavor one of {', '.join(FLAVORS)}.",
            )
        tokens = self.bundle.tokenizer_config
        request = Request(
            gene_names=gene_names,
            matrix=matrix,
            counts=use_raw_counts,
            batch_labels=use_batch_labels,
            n_top_genes=n_top_genes if fine_tuning else None,
            flavor=flavor,
            empty_cells=self.config.empty_cells,
            drawn_bins=tokens.n_bins if tokens.ties == "global_rng" else None,
        )
        with watched("process", total=0) as advance:
            return build_dataset(adata, self.bundle.vocabulary, request, advance=advance)

    def get_embeddings(
        self,
        dataset: scGPTDataset,
        output_attentions: bool = False,
        output_genes: bool = False,
        attn_layer: int = -1,
    ) -> Any:
        """Return embeddings by ``emb_mode``, float32 (C, D), each of length 1; NaN for empty cells.

        With emb_mode "gene": per cell a pandas Series of hidden states (D,), not normalised, by gene symbol. With
        ``output_attentions`` or ``output_genes`` the result is a tuple: the embeddings, then a list of attention
        weights (H, L, L) of layer ``attn_layer``, then a list of each cell's L token names, ``<cls>`` first. A cell's
        result depends neither on other cells nor on batch_size. Raises ModelError for a data set of another vocabulary.
        """
        self._check(dataset)
        layers = self.bundle.model.config.num_layers
        if not -layers <= attn_layer < layers:
            raise ConfigError(f"attn_layer is {attn_layer}.", remedy=f"This model has layers 0 to {layers - 1}.")
        embeddings = self._gene_states(dataset) if self.config.emb_mode == "gene" else self._embeddings(dataset)
        further: list[Any] = []
        if output_attentions:
            with watched("attention", total=len(dataset)) as advance:
                further.append(self._inference(dataset, advance).attentions(layer=attn_layer))
        if output_genes:
            further.append(self._inference(dataset).genes())
        return (embeddings, *further) if further else embeddings

    def embed(self, adata: anndata.AnnData, key: str = KEY, **options: Any) -> Float32:
        """Write the embeddings (C, D) of an AnnData to its ``obsm[key]`` and return them.

        Besides, ``uns[key + "_model"]`` identifies the model. ``options`` are those of ``process_data``.
        """
        if isinstance(adata, str | Path):
            raise CorpusError("embed writes into an AnnData.", remedy="Read the file first, or use get_embeddings.")
        embeddings = self._embeddings(self.process_data(adata, **options))
        adata.obsm[key] = embeddings
        adata.uns[key + MADE_BY] = self._identity()
        return embeddings

    def get_gene_embeddings(self, dataset: scGPTDataset | None = None) -> pd.DataFrame:
        """Return embeddings of genes, float32 (G, D), with symbols as the index.

        Without a data set those of the model's gene encoder, of every gene it knows. With one the mean hidden state of
        each gene over the cells that express it. Raises ModelError for a data set of another vocabulary.
        """
        if dataset is None:
            return static_embeddings(self.bundle)
        self._check(dataset)
        with watched("genes", total=len(dataset)) as advance:
            return contextual_embeddings(self.bundle, dataset, advance=advance)

    def plot_embeddings(
        self,
        adata: anndata.AnnData,
        color: str | None = None,
        key: str = KEY,
        file: str | Path | None = None,
        *,
        embeddings: npt.ArrayLike | None = None,
        **options: Any,
    ) -> Figure:
        """Draw cells in the UMAP plane of their embeddings.

        These are ``embeddings`` (C, D), as ``get_embeddings`` returns them, or else ``obsm[key]``, unless another model
        is known to have written it. Without both the cells are embedded as by ``embed``, which keeps the result in an
        AnnData that is no view; otherwise the AnnData is not changed. ``color`` is a column of obs or a gene. The
        figure is also written to ``file`` (.png, .svg or .pdf). ``options`` are those of ``process_data``. Raises
        ConfigError for another kind of file, CorpusError for an unknown color, ModelError for fewer than ten cells.
        """
        from cytoray.api.plotting import check_request, plot_plane

        check_request(adata, color=color, file=file)
        if embeddings is None and adata.uns.get(key + MADE_BY) in (None, self._identity()):
            embeddings = adata.obsm.get(key)
        if embeddings is None and adata.is_view:  # writing would turn it into a copy, with a warning
            embeddings = self._embeddings(self.process_data(adata, **options))
        if embeddings is None:
            embeddings = self.embed(adata, key, **options)
        return plot_plane(adata, np.asarray(embeddings, np.float32), color=color, file=file)

    def save(self, folder: str | Path) -> str:
        """Write the bundle as a new folder, which serving and ``scGPTConfig(model=…)`` take; return its digest."""
        return save_bundle(self.bundle, Path(folder))

    def _embeddings(self, dataset: scGPTDataset) -> Float32:
        """One vector per cell, (C, D)."""
        if self.config.emb_mode == "gene":
            raise ConfigError("emb_mode 'gene' gives no embedding per cell.", remedy="Set emb_mode to 'cell' or 'cls'.")
        self._check(dataset)
        wanted = _POOLING[self.config.emb_mode]
        # Where it is the model's own way, the predictor runs once for embeddings and labels.
        pooling = None if wanted == self.bundle.model.config.cell_embedding else wanted
        predictor = CellPredictor(
            self.bundle, batch_tokens=self._batch_tokens, pooling=pooling, empty_cells=self.config.empty_cells
        )
        with watched("embed", total=len(dataset)) as advance:
            return predictor.predict(dataset.cells, advance=advance).embeddings

    def _identity(self) -> str:
        """A digest of all that embeddings depend on: weights, vocabulary, tokens and settings."""
        digest = hashlib.sha256()
        for name, tensor in self.bundle.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        settings = [self.bundle.tokenizer_config, self.bundle.inference, self.config.emb_mode]
        digest.update(f"{self.bundle.vocabulary.digest()} {settings}".encode())
        return digest.hexdigest()

    def _gene_states(self, dataset: scGPTDataset) -> list[pd.Series[Any]]:
        with watched("embed", total=len(dataset)) as advance:
            return self._inference(dataset, advance).gene_states()

    def _inference(self, dataset: scGPTDataset, advance: Any = lambda cells: None) -> Inference:
        return Inference(self.bundle, dataset, batch_tokens=self._batch_tokens, advance=advance)

    @property
    def _batch_tokens(self) -> int:
        """Tokens per minibatch, so that it holds about ``batch_size`` of the longest cells at most."""
        return min(MOST_TOKENS, self.config.batch_size * self.bundle.tokenizer_config.max_length)

    def _check(self, dataset: scGPTDataset) -> None:
        """Refuse data that this model cannot use."""
        if dataset.vocabulary is not self.bundle.vocabulary and dataset.vocabulary != self.bundle.vocabulary:
            raise ModelError(
                "This data set was made for a model with another vocabulary.",
                remedy="Call process_data of the model that is to use it.",
            )
        refuse_conditions(self.bundle.model.config)
        if self.config.empty_cells == "error":
            report_empty_cells(dataset, "error")
