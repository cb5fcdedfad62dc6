"""File, Python face, offline embedding, HTTP and client give one answer to the same cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from cytoray.api import scGPTConfig, scGPTFineTuningModel
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.reading import read_cells
from cytoray.errors import CorpusError
from cytoray.model.bundle import ModelBundle
from cytoray.model.config import ModelConfig
from cytoray.model.predictor import CellPredictor
from cytoray.model.transformer import ScGPT
from cytoray.serving.client import Client
from cytoray.serving.offline import embed_cells
from cytoray.tasks.messages import ModelInfo
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

GENES = ("CD3D", "MS4A1", "LYZ", "NKG7", "CD14", "CD8A", "GNLY", "CST3", "PPBP", "IL7R", "CCR7", "SEPTIN9", "CD79A")
IDS = {"CD3D": "ENSG00000167286", "MS4A1": "ENSG00000156738.4", "SEPTIN9": "ENSG00000184640", "LYZ": "ENSG00000090382"}
# Only the ids beside them tell which genes the first two are; the third is an outdated symbol.
RENAMED = {"CD3D": "clone-17", "MS4A1": "my B cell gene", "SEPTIN9": "SEPT9"}


@pytest.fixture(scope="module")
def model() -> ModelBundle:
    """A model of real genes with three labels, trained on fewer genes than the cells have."""
    vocabulary = GeneVocabulary(sorted(GENES))
    shape = ModelConfig(
        vocabulary_size=vocabulary.size, width=16, num_heads=4, feedforward_width=24, num_layers=2, dropout=0.0,
        num_labels=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = ScGPT(shape, pad_id=vocabulary.pad_id).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return ModelBundle(network, vocabulary, TokenizerConfig(max_length=8), ("B", "T", "NK"), digest="d" * 64)


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    """Cells with Ensembl ids beside the names, of which some are outdated; two columns are the same gene."""
    counts = np.random.default_rng(0).poisson(1.5, (37, len(GENES) + 1)).astype(np.float32)
    counts[:, 4] += 1
    names = [*(RENAMED.get(gene, gene) for gene in GENES), "also lysozyme"]
    ids = [*(IDS.get(gene, "") for gene in GENES), IDS["LYZ"]]
    return anndata.AnnData(sp.csr_matrix(counts), var=pd.DataFrame({"ensembl_id": ids}, index=pd.Index(names)))


def test_every_way_to_ask_gives_the_same_labels_and_embeddings(
    model: ModelBundle, adata: anndata.AnnData, build_service: Any, listen: Any, tmp_path: Path
) -> None:
    face = scGPTFineTuningModel.from_bundle(model, configurer=scGPTConfig(emb_mode="cls"))
    dataset = face.process_data(adata)
    wanted, labels = face.get_embeddings(dataset), list(face.predict(dataset))
    assert len(set(labels)) > 1
    assert (dataset.cells.num_genes_per_cell > 7).any()  # some are longer than the context of training

    adata.write_h5ad(tmp_path / "cells.h5ad")
    source = SourceConfig(uri=str(tmp_path / "cells.h5ad"))
    named = read_cells(source, vocabulary=model.vocabulary, keep_empty=True)
    info = ModelInfo(name="tiny", version="7", digest="d" * 64)
    (table,) = embed_cells(CellPredictor(model), [named.cells], model=info)
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), wanted, atol=1e-5)
    assert table["label"].to_pylist() == labels

    before = adata.X.copy()
    with Client(listen(build_service(model, max_nonzeros=4000)), cells_per_request=16) as client:
        answer = client.annotate_adata(adata)
        np.testing.assert_allclose(client.embed_adata(adata), wanted, atol=1e-5)
        with pytest.warns(UserWarning, match="knows 11 of the 14 genes"):
            by_name = client.annotate(list(adata.var_names), adata.X)
        np.testing.assert_allclose(
            client.embed(list(adata.var_names), adata.X, ensembl_ids=list(adata.var["ensembl_id"])), wanted, atol=1e-5
        )
    np.testing.assert_allclose(answer.embeddings, wanted, atol=1e-5)
    assert list(answer.labels) == labels
    assert (answer.num_matched_genes, answer.num_genes) == (
        13,
        14,
    )  # of two columns of one gene, that with its name counts
    assert np.abs(by_name.embeddings - wanted).max() > 1e-3  # the ids are what makes them agree
    assert (before != adata.X).nnz == 0


def test_columns_of_one_name_and_id_are_summed(
    model: ModelBundle, adata: anndata.AnnData, build_service: Any, listen: Any
) -> None:
    doubled = anndata.AnnData(
        sp.hstack([adata.X, adata.X], format="csc"),
        var=pd.DataFrame(
            {"feature_name": [*adata.var_names] * 2, "gene_ids": [*adata.var["ensembl_id"]] * 2},
            index=[f"column {number}" for number in range(2 * adata.n_vars)],
        ),
    )
    with Client(listen(build_service(model, max_nonzeros=4000)), cells_per_request=16) as client:
        twice = adata.copy()
        twice.X = twice.X * 2
        wanted = client.embed_adata(twice)
        np.testing.assert_allclose(client.embed_adata(doubled, gene_names="feature_name"), wanted, atol=1e-5)
        with pytest.raises(CorpusError, match=r"no matrix 'layers/counts'. It has X\."):
            client.embed_adata(adata, matrix="layers/counts")
        with pytest.raises(CorpusError, match="symbol"):
            client.embed_adata(adata, gene_names="symbol")


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_a_gene_given_by_symbol_and_by_id_is_summed_and_reported_everywhere(
    model: ModelBundle, build_service: Any, connect: Any, tmp_path: Path
) -> None:
    others = ["NKG7", "CD14", "CD8A", "GNLY", "CST3", "PPBP"]
    names = ["CD3D", "MS4A1", "LYZ", "ENSG00000167286.11", "MS4A1", "SEPT9", "SEPTIN9", *others]
    counts = np.random.default_rng(1).poisson(2.0, (5, len(names))).astype(np.float32) + 1
    adata = anndata.AnnData(sp.csr_matrix(counts), var=pd.DataFrame(index=names))
    merged = counts[:, [0, 1, 2, *range(6, 13)]]  # SEPT9 is an older name: it is left out beside SEPTIN9
    merged[:, :2] += counts[:, 3:5]
    var = pd.DataFrame(index=["CD3D", "MS4A1", "LYZ", "SEPTIN9", *others])
    one_each = anndata.AnnData(sp.csr_matrix(merged), var=var)
    face = scGPTFineTuningModel.from_bundle(model, configurer=scGPTConfig(emb_mode="cls"))
    wanted = face.get_embeddings(face.process_data(one_each))

    dataset = face.process_data(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(face.get_embeddings(dataset), wanted)
    assert dataset.report.duplicates == {"CD3D": [names[0], names[3]], "MS4A1": ["MS4A1", "MS4A1"]}
    assert dataset.report.older == {"SEPTIN9": ["SEPT9"]}

    named = read_cells(SourceConfig(uri=str(tmp_path / "cells.h5ad")), vocabulary=model.vocabulary, keep_empty=True)
    info = ModelInfo(name="tiny", version="7", digest="d" * 64)
    (table,) = embed_cells(CellPredictor(model, empty_cells="nan"), [named.cells], model=info)
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), wanted, atol=1e-6)

    cells = [{"i": list(range(len(names))), "v": row.tolist()} for row in counts]
    answer = connect(build_service(model)).post("/v1/embed", json={"genes": names, "cells": cells}).json()
    np.testing.assert_allclose([cell["embedding"] for cell in answer["cells"]], wanted, atol=1e-6)
    summed, older = answer["warnings"]
    assert (summed["code"], summed["genes"]) == ("summed_genes", dataset.report.duplicates)
    assert (older["code"], older["genes"]) == ("older_names", dataset.report.older)


@pytest.mark.parametrize("has_ids", [False, True])
def test_two_genomes_get_the_same_answers_everywhere(
    model: ModelBundle, has_ids: bool, build_service: Any, one_by_one: Any, listen: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    human, mouse = rng.poisson(3.0, (2, 30, len(GENES))).astype(np.float32)
    human[10:20], mouse[:10] = 0, 0
    human[10:20, 0], mouse[:10, 0] = (
        1,
        1,
    )  # a trace of the other species; the last ten cells are doublets, left out as well
    # Genes of mouse under the names of human ones: only the genome tells them apart.
    genomes = ["GRCh38"] * len(GENES) + ["mm10"] * len(GENES)
    index = [f"column {number}" for number in range(2 * len(GENES))]
    var = pd.DataFrame({"feature_name": [*GENES, *GENES], "genome": genomes}, index=index)
    if has_ids:
        var["gene_ids"] = [IDS.get(gene, "") for gene in GENES] + [""] * len(GENES)
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(30)])
    adata = anndata.AnnData(sp.csr_matrix(np.hstack([human, mouse])), obs=obs, var=var)
    face = scGPTFineTuningModel.from_bundle(model, configurer=scGPTConfig(emb_mode="cls"))
    with pytest.warns(UserWarning, match="20 of 30 cells have no gene that the model knows: cell10"):
        dataset = face.process_data(adata)
    wanted, labels = face.get_embeddings(dataset), list(face.predict(dataset))
    assert np.isnan(wanted[10:]).all()
    assert labels[10:] == [None] * 20
    assert None not in labels[:10]

    adata.write_h5ad(tmp_path / "cells.h5ad")
    named = read_cells(SourceConfig(uri=str(tmp_path / "cells.h5ad")), vocabulary=model.vocabulary, keep_empty=True)
    info = ModelInfo(name="tiny", version="7", digest="d" * 64)
    (table,) = embed_cells(CellPredictor(model, empty_cells="nan"), [named.cells], model=info)
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), wanted, atol=1e-5)
    assert table["label"].to_pylist() == labels

    with Client(listen(build_service(model, max_nonzeros=4000, batching=one_by_one)), cells_per_request=10) as client:
        with pytest.warns(UserWarning, match="20 of 30 cells have no gene that the model knows: cell10, cell11"):
            answer = client.annotate_adata(adata)
        np.testing.assert_allclose(answer.embeddings, wanted, atol=1e-5)
        assert list(answer.labels) == labels
        assert np.isnan(answer.probabilities[10:]).all()
        with pytest.warns(UserWarning, match="10 of 10 cells have no gene"):
            of_mouse = client.annotate_adata(adata[10:20].copy())
    assert of_mouse.embeddings.shape == (10, 16)
    assert of_mouse.probabilities.shape == (10, 3)
    assert of_mouse.labels == (None,) * 10
