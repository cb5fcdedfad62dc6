"""What the page of a protein assessment shows beside the table of metrics."""

from __future__ import annotations

from typing import Any

from cytoray.evaluation.assessment import Assessment
from cytoray.evaluation.assessment_page import Section, details_rows, number

NOISE = (
    "Pearson correlation of each protein over all scored cells. ceiling: the correlation that the noise of counting "
    "leaves to a perfect prediction (its counts split in halves); difference: 90 % interval of product minus baseline. "
    "positive: share of cells in the upper of two components; AUROC: product's, of telling these cells."
)


def multiomic_sections(assessment: Assessment) -> list[Section]:
    """Return the sections that this assessment has something to show in."""
    details = assessment.details
    sections = [Section("Proteins", NOISE, _protein_rows(details["proteins"]))]
    if "types" in details:
        columns = ("type", "num_cells", "baseline", "product")
        text = "Correlation within a cell type, averaged over proteins: differences between types do not count here."
        sections.append(Section("Within cell types", text, details_rows(columns, details["types"])))
    weights = {row["member"]: row["weight"] for row in details["weights"]}
    members = [row | {"weight": weights[row["member"]]} for row in details["members"]]
    text = "Each method alone on the scored cells, and its weight in the product, averaged over proteins and splits."
    rows = details_rows(("member", "pearson", "rmse", "weight"), members)
    sections.append(Section("Methods", text, rows))
    if details["joint"]:
        sections.append(_joint(details["joint"]))
    if details["unseen_proteins"]:
        sections.append(_unseen(details["unseen_proteins"]))
    columns = ("name", "num_train", "num_test", "baseline", "chosen", "held_out")
    text = "held out: the choice's correlation on inner folds of the training cells."
    sections.append(Section("Splits", text, details_rows(columns, details["splits"])))
    return sections


def _protein_rows(proteins: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["protein", "baseline", "product", "difference", "ceiling", "positive", "AUROC"]]
    for row in sorted(proteins, key=lambda row: -(row["product"] or 0)):
        low, high = row["interval"]
        between = "-" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
        values = (row["ceiling"], row["positive"], row["auroc"])
        rows.append([row["protein"], number(row["baseline"]), number(row["product"]), between, *map(number, values)])
    return rows


def _joint(joint: dict[str, Any]) -> Section:
    text = (
        "How well the 20 nearest cells in each space tell what was kept out of it: one protein at a time "
        f"({joint['num_proteins']} of them), and {joint['num_genes']} genes; mean Pearson correlation. RNA and "
        "proteins alone stand beside both joint spaces."
    )
    return Section("Joint embedding", text, details_rows(("space", "proteins", "genes"), joint["spaces"]))


def _unseen(unseen: dict[str, Any]) -> Section:
    text = (
        "Proteins that no training saw, from the gene that codes for them: log1p of its expression, its mean over a "
        "cell's 30 nearest cells, and a regression on both that was learned on the other proteins. Mean Pearson: "
        + ", ".join(f"{name} {number(value)}" for name, value in unseen["mean"].items())
        + "."
    )
    columns = ("protein", "gene", "expression", "smoothed", "product")
    return Section("Proteins never seen", text, details_rows(columns, unseen["proteins"]))
