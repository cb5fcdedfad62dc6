"""The arrays that the original implementation computed from its own checkpoints, reproduced to 1e-5; `make parity`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import original_parity
import pytest
import torch

NUMBERS = Path(__file__).parents[2].parent / "shared" / "reference" / "scgpt_numbers"

pytestmark = pytest.mark.skipif(
    not NUMBERS.is_dir(), reason=f"{NUMBERS} is absent: agreement with the original implementation is then not checked"
)


def test_every_array_is_reproduced_and_none_left_out() -> None:
    rows, unused = original_parity.run_checks(NUMBERS)
    assert unused == []
    assert [row for row in rows if not row[2] <= row[3]] == []
    assert len(rows) > 150


def test_what_is_missing_does_not_hide_the_rest(tmp_path: Path) -> None:
    for path in NUMBERS.iterdir():
        if path.name not in {"ckpt_impl", "ckpt_generator", "ref_category.npz", "ref_annotation.npz"}:
            (tmp_path / path.name).symlink_to(path)
    with np.load(NUMBERS / "ref_annotation.npz") as stored:
        arrays = {name: stored[name] for name in stored.files if name != "loss_cls"}
    np.savez(tmp_path / "ref_annotation.npz", **{**arrays, "cell_emb": arrays["cell_emb"][:2]})
    rows, unused = original_parity.run_checks(tmp_path)
    missing = "\n".join(unused)
    for name in ("ckpt_impl", "ckpt_generator", "ref_category.npz", "ref_annotation.npz: loss_cls is missing"):
        assert name in missing
    assert "ref_annotation.npz: cell_emb" not in missing
    assert [row[1] for row in rows if not row[2] <= row[3]] == ["cell_emb (2, 64), not (8, 64)"]
    compared = {row[1] for row in rows}
    assert {"adaptive_mlm_output", "hidden [ckpt_nn, cell]", "bin51_count [global generator, seed 0]"} <= compared


@torch.no_grad()
def test_the_quirk_is_what_makes_it_agree() -> None:
    """Without it the unknown genes' predictions move, and nothing else does."""
    (oracle,) = original_parity.generative(NUMBERS)
    model, vocabulary, _ = original_parity.load(NUMBERS, "ckpt_public", unknown_out_proj=True)
    known = original_parity.minibatch(oracle.tensor("pcpt_gene"), oracle.tensor("pcpt_expr"), pad_id=vocabulary.pad_id)
    genes = oracle.tensor("gen_gene")
    batch = original_parity.GenerativeMinibatch(
        known, genes, oracle.tensor("gen_expr_target"), genes == vocabulary.pad_id
    )
    with torch.no_grad():
        clean = model.forward_generative(batch)
    np.testing.assert_allclose(clean.cells_BD.numpy(), oracle.arrays["cell_emb"], atol=1e-5)
    assert np.abs(clean.expression.numpy() - oracle.arrays["gen_preds"]).max() > 0.01


@torch.no_grad()
def test_a_changed_bin_would_be_seen() -> None:
    """The comparison has teeth: one changed bin moves the cell well beyond the bound."""
    (oracle,) = original_parity.annotation(NUMBERS)
    model, vocabulary, _ = original_parity.load(NUMBERS, "ckpt_annotation")
    values = oracle.tensor("values").clone()
    values[0, 1] += 1
    moved = original_parity.Oracle(NUMBERS, oracle.file)
    with torch.no_grad():
        batch = original_parity.minibatch(oracle.tensor("genes"), values, pad_id=vocabulary.pad_id)
        moved.check("cell_emb", model.embed(batch))
    assert moved.differences[0][1] > 10 * original_parity.VALUE
