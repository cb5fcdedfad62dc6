"""Validate a model on held-out cells: at each checkpoint the same cells with the same genes hidden."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from cytoray.corpus.stream import CorpusStream, open_stream
from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.errors import CorpusError
from cytoray.model.targets import summarise
from cytoray.training.config import RunConfig
from cytoray.training.objectives import Objective, Summarising

CELLS_PER_PART = 8  # per rank and part; all ranks use the same number of parts, since ZeRO 3 gathers weights in each


def held_in(options: StreamOptions, config: RunConfig) -> StreamOptions:
    """Restrict stream options to the cells that are not held out."""
    if config.validation is None:
        return options
    kept = f"not ({config.validation.select})"
    return replace(options, select=kept if options.select is None else f"({options.select}) and {kept}")


def open_held_out(
    options: StreamOptions, config: RunConfig, *, like: CorpusStream | None = None
) -> CorpusStream | None:
    """Open the held-out cells as one step of a stream; None without validation, CorpusError if they are too few.

    The middle unknown ratio is used. The cells and their hidden genes depend on ``validation.seed`` alone. Values of
    obs columns get the codes that they have in ``like``, the training stream; it must be given if there are columns.
    """
    held_out = config.validation
    if held_out is None:
        return None
    own = held_out.select if options.select is None else f"({options.select}) and ({held_out.select})"
    ratios = (sorted(options.ratios)[len(options.ratios) // 2],) if options.ratios else ()
    tokenizer = options.tokenizer.model_copy(update={"seed": held_out.seed})
    chosen = replace(
        options if like is None else like.coded(options),
        select=own,
        ratios=ratios,
        seed=held_out.seed,
        tokenizer=tokenizer,
        cells_per_step=1,
        cells_per_minibatch=None,
        weights=None,
        whole_cells=None if options.whole_cells is None else options.whole_cells.undisturbed(),
    )
    assert not chosen.members.columns or like is not None, "the codes of the training stream"
    num_cells = min(open_stream(config.store, config.corpus, chosen).num_cells, held_out.max_cells)
    if num_cells < config.workers.most:
        raise CorpusError(
            f"validation.select ({held_out.select}) holds out only {num_cells} cells.",
            remedy=f"Hold out at least one for each of the {config.workers.most} workers.",
        )
    return open_stream(config.store, config.corpus, replace(chosen, cells_per_step=num_cells))


@dataclass(frozen=True)
class Validator:
    """One rank's share of the held-out cells."""

    batch: StepBatch
    objective: Objective
    num_cells: int  # of all ranks

    @staticmethod
    def read(stream: CorpusStream, objective: Objective) -> Validator:
        """Read this rank's share."""
        batch = stream.read_step(0, rank=dist.get_rank(), world_size=dist.get_world_size())
        return Validator(batch, objective, stream.options.cells_per_step)

    @torch.no_grad()
    def judge(self, engine: Any) -> dict[str, float]:
        """Return means over all ranks' cells; the first selects the best checkpoint (lower is better). Collective.

        Expression objectives add ``mean_bin``: the error of the best constant, the mean of these targets.
        """
        engine.eval()
        fewest = self.num_cells // dist.get_world_size()
        sums: dict[str, torch.Tensor] = {}  # total, or totals, and count of each
        for part in self.batch.split(-(-fewest // CELLS_PER_PART)):
            prepared = self.objective.prepare(part).to(engine.device)
            for name, found in engine(prepared, self.batch.step, judge=True).items():
                sums[name] = sums[name] + found if name in sums else found
        engine.train()
        joined = torch.cat(list(sums.values()))
        dist.all_reduce(joined)
        rows = dict(zip(sums, joined.split([len(row) for row in sums.values()]), strict=True))
        means = {name: float(row[0]) / max(1.0, float(row[1])) for name, row in rows.items() if len(row) == 2}
        if isinstance(self.objective, Summarising):
            means = self.objective.summarise({name: row[:-1] for name, row in rows.items()}, means)
        if "target" in means:
            mean, square = means.pop("target"), means.pop("target_square")
            means["mean_bin"] = square - mean * mean
        return summarise(means)
