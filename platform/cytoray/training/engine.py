"""Build DeepSpeed engines; every setting whose default changed between releases is explicit."""

from __future__ import annotations

import logging
import math
import os
import sys
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cytoray.errors import TrainingError
from cytoray.model.groups import ParameterGroup
from cytoray.training.checkpoint import Checkpoint
from cytoray.training.config import OptimizerConfig, RunConfig
from cytoray.training.holdings import (
    holdings,
    is_sharded,
    named_parameters,
    set_num_updates,
    start_optimizer,
    weight_slices,
)
from cytoray.training.slices import MASTER, MOMENTS, Slice, Snapshot, fill

logger = logging.getLogger(__name__)


def learning_rate(optimizer: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to ``final_share`` of the peak: a pure function of the step."""
    if step < optimizer.warmup_steps:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup_steps
    done = (step - optimizer.warmup_steps) / max(1, num_steps - optimizer.warmup_steps)
    share = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return optimizer.learning_rate * (optimizer.final_share + (1 - optimizer.final_share) * share)


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Derive the DeepSpeed dictionary; users never write it."""
    optimizer, workers = config.optimizer, config.workers
    bf16 = workers.precision == "bf16"
    return {
        # Every backward accumulates and every step updates: the loop chooses the number of micro-batches per step and
        # divides losses by the terms of all ranks, so these sizes have no effect.
        "managed_gradient_accumulation": False,
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.gradient_clipping,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "prescale_gradients": False,
        "gradient_allreduce_op": "mean",
        "communication_data_type": "fp32",  # gradients are summed in fp32, also with bf16
        "zero_allow_untested_optimizer": False,
        "checkpoint": {"tag_validation": "Warn"},  # its checkpoints are not used
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optimizer.learning_rate,
                "betas": list(optimizer.betas),
                "eps": optimizer.epsilon,
                "weight_decay": optimizer.weight_decay,
                "torch_adam": True,  # the compiled Adam needs a compiler at start
                "adam_w_mode": True,
            },
        },
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": workers.zero_stage,
            # One reduction after backward: overlap reduced wrongly when the same module ran twice per step.
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "round_robin_gradients": False,
        },
    }


class TrainableModule(Protocol):
    """Interface of a module that an engine trains; ObjectiveModule implements it."""

    def parameter_groups(self, *, layer_decay: float) -> list[ParameterGroup]:
        """Return the parameters that are trained, by their share of the learning rate."""


def build_engine(module: TrainableModule, config: RunConfig, world_size: int) -> Any:
    """Wrap ``module`` in a DeepSpeed engine on the process group of Ray Train.

    Raises TrainingError for bf16 at stage 0, which accumulates gradients in bf16.
    """
    if config.workers.precision == "bf16" and config.workers.zero_stage == 0:
        raise TrainingError(
            "bf16 does not work with workers.zero_stage 0.", remedy="Set workers.zero_stage to 1, 2 or 3."
        )
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = import_deepspeed()
    if not torch.cuda.is_available():
        # DeepSpeed would compile its shared-memory all-reduce here; gloo needs no compiler.
        deepspeed.ops.__compatible_ops__ = {}
        logger.info("DeepSpeed's compiled CPU communication op is not used: gloo reduces gradients")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=module.parameter_groups(layer_decay=config.optimizer.layer_decay),
        config=deepspeed_config(config, world_size),
    )
    start_optimizer(engine)
    if config.workers.zero_stage == 0:
        _leave_out_what_is_not_finite(engine, config.optimizer.gradient_clipping)
    return engine


def import_deepspeed() -> Any:
    """Import DeepSpeed without MLflow, which takes half of the time for an autotuner that is not used.

    No thread of this process may import MLflow meanwhile: the run's log, which does, is opened later. DeepSpeed detects
    the accelerator now, so DS_ACCELERATOR must be set.
    """
    is_imported = "mlflow" in sys.modules
    if not is_imported:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # `import mlflow` raises ImportError until it is gone
    try:
        import deepspeed
    finally:
        if not is_imported:
            del sys.modules["mlflow"]
    return deepspeed


def _leave_out_what_is_not_finite(engine: Any, bound: float) -> None:
    """Make a stage-0 engine skip updates whose gradient is not finite and report the norm, as other stages do."""
    optimizer = engine.optimizer
    step = optimizer.step

    def clip() -> None:
        """Clip the gradient and keep its norm."""
        engine._global_grad_norm = nn.utils.clip_grad_norm_(engine.module.parameters(), bound)

    def step_if_finite() -> None:
        """Update the weights unless the gradient is not finite."""
        optimizer.overflow = not bool(torch.isfinite(engine._global_grad_norm))
        if optimizer.overflow:
            engine._global_grad_norm = math.inf
        else:
            step()

    engine.clip_fp32_gradients, optimizer.step = clip, step_if_finite


def update(engine: Any) -> bool:
    """Update the weights with the accumulated gradients; return False if these are not finite.

    In that case no weight changes, at any stage. The gradients are always cleared.
    """
    engine.step()
    return bool(engine.was_step_applied())


def set_learning_rate(engine: Any, value: float) -> None:
    """Write the learning rate of this step into every parameter group, times the scale of the group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value * group["rate_scale"]


@torch.no_grad()
def average_buffers(engine: Any) -> None:
    """Average running statistics, of which every rank has its own, over ranks. Collective if the model has any."""
    buffers = [buffer for buffer in engine.module.model.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten().float() for buffer in buffers])
    torch.distributed.all_reduce(flat)
    parts = (flat / torch.distributed.get_world_size()).split([buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def gather_weights(engine: Any) -> dict[str, Tensor]:
    """Return full fp32 weights and buffers by name, on the host. Collective: every rank must call it."""
    parameters = dict(engine.module.model.named_parameters())
    state = engine.module.model.state_dict()
    return {name: _on_host(_full_weight(parameters.get(name, tensor))) for name, tensor in state.items()}


def _full_weight(parameter: Any) -> Tensor:
    """Return a whole parameter, gathered if ZeRO shards it, or a buffer."""
    full: Tensor = parameter.detach()
    if is_sharded(parameter):
        import deepspeed

        if parameter.requires_grad:
            full = deepspeed.utils.safe_get_full_fp32_param(parameter)
        else:
            with deepspeed.zero.GatheredParameters([parameter]):
                full = parameter.detach().clone()
    return full


def gather_gradients(engine: Any) -> dict[str, Tensor]:
    """Return full fp32 gradients by name, after reduction and before the update. Collective: all ranks must call it."""
    return {name: _on_host(_full_gradient(parameter)) for name, parameter in named_parameters(engine)}


def _full_gradient(parameter: Any) -> Tensor:
    """Return the reduced gradient from wherever the stage keeps it; under ZeRO ``parameter.grad`` is one rank's."""
    gradient: Tensor = (
        parameter._z3_optimizer.get_fp32_grad_for_param(parameter)
        if hasattr(parameter, "ds_id")
        else parameter.get_full_hp_grad()
        if hasattr(parameter, "_hp_mapping")
        else parameter.grad
    )
    return gradient


def _on_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the host, in fp32 if it is floating-point."""
    kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", kind, copy=True).contiguous()


def gather_moments(engine: Any) -> dict[str, Tensor]:
    """Return full Adam moments as ``<moment>.<name>``, on the host. Collective: every rank must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = {}
    for name, parameter in named_parameters(engine):
        for moment in MOMENTS:
            if is_sharded(parameter):
                full = safe_get_full_optimizer_state(parameter, moment)
            else:
                full = engine.optimizer.state[parameter][moment]
            moments[f"{moment}.{name}"] = _on_host(full)
    return moments


def take_snapshot(engine: Any, *, averages: dict[str, Tensor] | None = None) -> Snapshot:
    """Copy this rank's part of a checkpoint to the host; ranks exchange nothing at any stage."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    stage, held = engine.zero_optimization_stage(), holdings(engine)
    if stage == 0:  # all ranks hold everything: each writes its share
        held = {name: piece.share(rank, world_size) for name, piece in held.items()}
    held |= weight_slices(engine)
    slices = {name: Slice(_on_host(piece.values), piece.start, piece.shape) for name, piece in held.items()}
    if rank:
        return Snapshot({}, slices, None, rank, world_size, stage)
    sharded = {name for name, parameter in engine.module.model.named_parameters() if hasattr(parameter, "ds_id")}
    state = engine.module.model.state_dict()
    weights = {name: _on_host(tensor) for name, tensor in state.items() if name not in sharded}
    copies = None if averages is None else {name: _on_host(tensor) for name, tensor in averages.items()}
    return Snapshot(weights, slices, copies, rank, world_size, stage)


@torch.no_grad()
def restore(engine: Any, checkpoint: Checkpoint) -> int:
    """Restore the optimiser's state and its update count, whatever world size and stage wrote them.

    The module must have the checkpoint's weights when the engine is built. Returns how many files of slices were read;
    one if world size, stage and precision are unchanged. Raises TrainingError if the checkpoint does not fit.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    targets = holdings(engine)
    masters = {name for name in targets if name.startswith(f"{MASTER}.")}
    if masters and not checkpoint.layout.has_master:  # written in fp32: its weights are what bf16 calls masters
        weights = {f"{MASTER}.{name}": Slice.whole(tensor) for name, tensor in checkpoint.load_weights().items()}
        fill({name: targets.pop(name) for name in masters}, [weights])
    num_read = fill(targets, checkpoint.read_slices(rank=rank, world_size=world_size))
    state = checkpoint.state
    set_num_updates(engine, state.step if state.num_updates is None else state.num_updates)
    return num_read
