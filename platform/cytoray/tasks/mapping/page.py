"""The page of a mapping: the query on the reference's map, how sure its labels are, and what they are if known."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from cytoray.evaluation.assessment_page import png
from cytoray.evaluation.classification import score_classification
from cytoray.evaluation.plots import draw_confusion
from cytoray.tasks.mapping.output import draw_confidence, draw_map, summary_lines
from cytoray.tasks.mapping.reference import Reference

_STYLE = (
    "body{font-family:sans-serif;max-width:52rem;margin:2rem auto;color:#1f2933}img{max-width:100%}"
    "h2{margin-top:2rem}li{margin:.2rem 0}"
)


def render_mapping(
    reference: Reference, rows: Sequence[dict[str, Any]], about: dict[str, Any], *, truth: Sequence[str | None],
    title: str,
) -> bytes:  # fmt: skip
    """Render the page; ``truth`` are known labels, None if unknown, which are compared by name."""
    parts = [_heading(f"Mapping of {title.rpartition('/')[2]}")]
    facts = [f"reference {about['reference'][:16]}, space {about['space']}", *summary_lines(rows), *about["warnings"]]
    parts.append("<ul>" + "".join(f"<li>{html.escape(fact)}</li>" for fact in facts) + "</ul>")
    if any(row["label"] is not None for row in rows):
        if reference.has_map:
            parts.append(_picture("On the reference's map", png(draw_map(reference, rows))))
        parts.append(_picture("Confidence and unseen types", png(draw_confidence(rows))))
    pairs = [(str(true), row["label"]) for true, row in zip(truth, rows, strict=True) if true and row["label"]]
    if pairs:
        true, found = zip(*pairs, strict=True)
        scores = score_classification(list(true), list(found), labels=sorted({*true, *found}))
        parts.append(_picture("Known labels", png(draw_confusion(scores))))
    page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Mapping</title><style>{_STYLE}</style>"
    return (page + "".join(parts) + "</html>").encode()


def _heading(text: str) -> str:
    return f"<h1>{html.escape(text)}</h1>"


def _picture(title: str, image: str) -> str:
    return f"<h2>{html.escape(title)}</h2><img alt='{html.escape(title)}' src='data:image/png;base64,{image}'>"
