"""One rank that takes engines of every ZeRO stage through skipped steps, checkpoints and restores, without Ray.

python engine_rank.py RANK WORLD MEETING OUT [STORE]: writes ``OUT`` with whole weights and moments as
``<case>/<moment of the case>/<name>``. Each case leaves a checkpoint of a run of its name in the store that is OUT's
folder; with STORE, those of another number of ranks are restored as well.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_group import join
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor.debug import CommDebugMode

from cytoray.model.groups import ParameterGroup
from cytoray.tracking import TrackingConfig
from cytoray.training import checkpoint as checkpoints
from cytoray.training import engine as engines
from cytoray.training.averaging import WeightAverage
from cytoray.training.config import OptimizerConfig, PretrainConfig, TrainConfig, WorkersConfig
from cytoray.training.holdings import holdings
from cytoray.training.slices import MASTER

CASES = [*((stage, "fp32") for stage in (0, 1, 2, 3)), *((stage, "bf16") for stage in (1, 2, 3))]


class Wrapped(nn.Module):
    """A small network whose sizes divide by nothing, with a frozen layer and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        frozen = nn.Linear(5, 5).requires_grad_(requires_grad=False)
        self.model = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Tanh(), frozen, nn.Linear(5, 3))
        self.model.register_buffer("counter", torch.tensor(3))

    def parameter_groups(self, *, layer_decay: float) -> list[ParameterGroup]:
        """The first layer and the rest, which has a tenth of the learning rate."""
        first, rest = list(self.model[0].parameters()), list(self.model[1:].parameters())
        rest = [parameter for parameter in rest if parameter.requires_grad]
        return [{"params": first, "rate_scale": 1.0}, {"params": rest, "rate_scale": layer_decay}]

    def forward(self, inputs: Tensor) -> Tensor:
        """A loss."""
        return self.model(inputs.to(self.model[0].weight.dtype)).float().square().mean()


def build(stage: int, precision: str, module: nn.Module | None = None) -> Any:
    """An engine of a small network."""
    config = PretrainConfig(
        store="unused",
        run="unused",
        corpus="unused",
        train=TrainConfig(num_steps=9),
        optimizer=OptimizerConfig(learning_rate=0.1, epsilon=1e-3),
        workers=WorkersConfig(num_workers=dist.get_world_size(), zero_stage=stage, precision=precision),
        tracking=TrackingConfig(uri="http://127.0.0.1:9", journal_folder="unused"),
    )
    return engines.build_engine(module or Wrapped(), config, dist.get_world_size())


def step(engine: Any, number: int, *, poison: float = 1.0) -> bool:
    """A step of two micro-batches; the last rank's first one is multiplied by ``poison``."""
    for index in range(2):
        torch.manual_seed(100 * number + 10 * index + dist.get_rank())
        spoilt = poison if index == 0 and dist.get_rank() == dist.get_world_size() - 1 else 1.0
        engine.backward(engine(torch.randn(4, 7)) * spoilt)
    return engines.update(engine)


def whole(engine: Any) -> dict[str, Tensor]:
    """Weights and moments, and the count of updates."""
    flat = next(iter(getattr(engine.optimizer, "optimizer", engine.optimizer).state.values()))
    return engines.gather_weights(engine) | engines.gather_moments(engine) | {"num_updates": flat["step"].clone()}


def restored(stage: int, precision: str, store: str, run: str) -> tuple[Any, int]:
    """A new engine restored from a checkpoint, and the number of files of slices read."""
    saved = checkpoints.require_checkpoint(store, run)
    module = Wrapped()
    module.model.load_state_dict(saved.load_weights())
    engine = build(stage, precision, module)
    for name, piece in holdings(engine).items():  # what is not restored would show
        piece.values.fill_(9.0 if not name.startswith(MASTER) else 0.5)
    return engine, engines.restore(engine, saved)


def go_through(stage: int, precision: str, store: str, others: str | None) -> dict[str, Tensor]:
    """All that is looked at of one stage and precision, by ``<moment of the case>/<name>``."""
    found: dict[str, dict[str, Tensor]] = {}
    smooth, skipping = build(stage, precision), build(stage, precision)
    average = None if stage == 3 else WeightAverage(smooth, decay=0.75)
    averages = engines.gather_weights(smooth)
    applied = [step(smooth, 0), step(skipping, 0)]
    found["before"] = whole(skipping)
    for poison in (float("nan"), float("inf")):
        applied.append(not step(skipping, 1, poison=poison))
        found[f"after {poison}"] = whole(skipping)
    norm = float(skipping.get_global_grad_norm())
    if average is not None:
        average.update()
        averages = {name: tensor.lerp(masters[name], 0.25) for masters in [engines.gather_weights(smooth)]
                    for name, tensor in averages.items() if tensor.is_floating_point()}  # fmt: skip
        half = WeightAverage(smooth, decay=0.75, saved=average.weights())  # as after a restart
    applied += [step(smooth, 1), step(skipping, 1)]
    if average is not None:
        for one, part in ((average, "averages"), (half, "averages restarted")):
            one.update()
            found[part] = {name: tensor.clone() for name, tensor in one.weights().items() if name in averages}
        masters = engines.gather_weights(smooth)
        found["averages expected"] = {name: tensor.lerp(masters[name], 0.25) for name, tensor in averages.items()}
        with average.swapped_in():
            found["swapped in"] = {name: smooth.module.model.state_dict()[name].float().clone() for name in averages}
    found |= {"smooth": whole(smooth), "skipping": whole(skipping)}
    writer = checkpoints.CheckpointWriter(
        checkpoints.checkpoints_uri(store, f"{stage}{precision}"), keep=1, attempt="test", timeout_s=60
    )
    state = checkpoints.TrainerState(step=4, num_updates=2, manifest_digest="m", config_digest="c", history=())
    with CommDebugMode() as comm:
        snapshot = engines.take_snapshot(skipping)
        exchanged = [comm.get_total_counts()]
        engines.gather_weights(skipping)
        exchanged.append(comm.get_total_counts())
    writer.submit(snapshot, state)
    writer.wait()
    dist.barrier()
    step(skipping, 2)
    found["third step"] = whole(skipping)
    reads = []
    for other_store, other_stage in [
        (store, stage),
        (store, 4 - max(stage, 1)),
        *([(others, stage)] if others else []),
    ]:
        engine, num_read = restored(other_stage, precision, other_store, f"{stage}{precision}")
        reads.append(num_read)
        found[f"restored {len(reads)}"] = whole(engine)
        step(engine, 2)
        found[f"third step {len(reads)}"] = whole(engine)
    other = "fp32" if precision == "bf16" else "bf16"
    engine, _ = restored(max(stage, 1), other, store, f"{stage}{precision}")
    found["restored in another precision"] = whole(engine)
    applied.append(step(engine, 2))
    found["facts"] = {
        "applied": torch.tensor(applied),
        "norm": torch.tensor(norm),
        "reads": torch.tensor(reads),
        "exchanged": torch.tensor(exchanged),
    }
    return {f"{part}/{name}": tensor for part, tensors in found.items() for name, tensor in tensors.items()}


def main() -> None:
    rank, world_size, meeting, out, *others = sys.argv[1:]
    torch.set_num_threads(1)
    join(meeting, rank=int(rank), world_size=int(world_size))
    results = {}
    for stage, precision in CASES:
        found = go_through(stage, precision, str(Path(out).parent), others[0] if others else None)
        results |= {f"{stage}{precision}/{name}": tensor for name, tensor in found.items()}
    save_file(results, f"{out}.{rank}")
    dist.barrier()


if __name__ == "__main__":
    main()
