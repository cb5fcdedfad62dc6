"""``cytoray networks``: infer gene networks, look at a gene in one, compare groups, evaluate beside known edges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytoray.cli.common import AsJson, print_answer
from cytoray.cli.options import command_of
from cytoray.tasks.networks.config import InferNetworksConfig

if TYPE_CHECKING:
    from cytoray.tasks.networks.network import Edge

_ARROWS = {1: "->", -1: "-|", 0: "--"}
app = typer.Typer(help="Gene networks: which factors regulate which genes.", no_args_is_help=True)
Folder = Annotated[str, typer.Argument(help="Folder or s3:// prefix of a network.", show_default=False)]
Group = Annotated[str | None, typer.Option(help="Group of cells; default: the first.")]
_INFER = (
    "Infer a gene network of the cells of a file. A killed inference continues where it stopped; the same command "
    "again returns the network that is there."
)


def _infer(config: InferNetworksConfig, as_json: bool) -> None:
    """Infer the network and print its size, its strongest edges and its warnings."""
    from cytoray import storage
    from cytoray.stages.networks import run_inference, summarise
    from cytoray.tasks.networks.network import PAGE, edge_rows

    network = run_inference(config)
    lines = [
        f"{group}: {_text(edge)}" for group in network.groups for edge in edge_rows(network.group_edges(group).head(5))
    ]
    size = f"{len(network.tfs):,} factors, {len(network.targets):,} targets, {len(network.edges):,} edges"
    answer = summarise(network, config)
    found = [*lines, *network.about["warnings"], f"{size}, {len(network.programs)} programs"]
    print_answer(answer, [*found, storage.join(config.out, PAGE)], as_json=as_json)


app.command("infer")(command_of(InferNetworksConfig, _INFER, _infer))


@app.command()
def show(
    network: Folder,
    gene: Annotated[str, typer.Option(help="Gene whose regulators and targets are shown.", show_default=False)],
    num: Annotated[int, typer.Option(help="Maximum number of regulators and of targets.", min=1)] = 20,
    group: Group = None,
    out: Annotated[Path | None, typer.Option(help="Picture to write: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the neighbourhood of a gene: its strongest regulators and targets."""
    from cytoray.evaluation.figures import save_figure
    from cytoray.tasks.networks.network import edge_rows, load_network
    from cytoray.tasks.networks.page import draw_edges

    known = load_network(network)
    edges = known.neighbourhood(gene, num=num, group=group)
    if out is not None:
        save_figure(draw_edges(known, group=group, gene=gene), out)
    lines = [_text(edge) for edge in edge_rows(edges)]
    answer = {"gene": gene, "edges": edges.to_dict("records")}
    print_answer(answer, [*lines, *([str(out)] if out is not None else [])], as_json=as_json)


@app.command()
def evaluate(
    network: Folder,
    truth: Annotated[str | None, typer.Option(help="Table of known edges: tsv or csv with tf and target.")] = None,
    confidence: Annotated[list[str], typer.Option(help="Level of confidence that counts; repeatable.")] = ["A", "B"],  # noqa: B006
    screen: Annotated[str | None, typer.Option(help="File of cells in which factors were knocked out.")] = None,
    perturbation_key: Annotated[str, typer.Option(help="Column of obs with the knocked-out gene.")] = "perturbation",
    control: Annotated[str, typer.Option(help="Its value for cells without a knock-out.")] = "control",
    batch_key: Annotated[str | None, typer.Option(help="Column of obs: controls of the same batch count.")] = None,
    group: Group = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a network beside known edges and a screen, beside correlation alone; nothing is learned from them."""
    from cytoray.tasks.networks.evaluating import Known, evaluate_network
    from cytoray.tasks.networks.network import load_network
    from cytoray.tasks.networks.screen import ScreenConfig

    screened = None if screen is None else ScreenConfig(screen, perturbation_key, control, batch_key)
    found = evaluate_network(load_network(network), Known(truth, tuple(confidence), screened), group=group)
    lines = [
        f"{name}: {row['product']:.3f}"
        + (f", correlation {row['baseline']:.3f} ({row['verdict']})" if row["baseline"] is not None else "")
        + (f", floor {row['floor']:.3f}" if row["floor"] is not None else "")
        for name, row in found["metrics"].items()
    ]
    lines += [f"  {row['member']}: AUROC {row['factor_auroc']:.3f}" for row in found["details"].get("members", [])]
    print_answer(found, [*lines, *found["warnings"]], as_json=as_json)


@app.command()
def compare(
    network: Folder,
    first: Annotated[str, typer.Option(help="Group of cells.", show_default=False)],
    second: Annotated[str, typer.Option(help="Group that is subtracted.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Parquet file to write.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compare the edges of two groups of cells: differences of weights, and of correlations with their significance."""
    from cytoray.drafts import draft_of
    from cytoray.tasks.networks.differences import compare_groups
    from cytoray.tasks.networks.network import load_network

    table = compare_groups(load_network(network), first, second)
    with draft_of(out) as draft:
        table.to_parquet(draft, index=False)
    num = int((table["q_value"] <= 0.05).sum())
    lines = [f"{row.tf} - {row.target}: {row.difference:+.3f} (q {row.q_value:.1e})" for row in table[:10].itertuples()]
    text = f"{num:,} of {len(table):,} edges differ at a false discovery rate of 5 %: {out}"
    answer: dict[str, Any] = {"out": str(out), "num_edges": len(table), "num_different": num}
    print_answer(answer, [*lines, text], as_json=as_json)


def _text(edge: Edge) -> str:
    return f"{edge.tf} {_ARROWS[edge.sign]} {edge.target}  {edge.weight:.3f}"
