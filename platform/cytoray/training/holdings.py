"""One view of the optimiser's state for all ZeRO stages; only this file knows where DeepSpeed keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cytoray.training.slices import MASTER, MOMENTS, Slice


def named_parameters(engine: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield trained parameters under the names of the model's ``state_dict``."""
    for name, parameter in engine.module.model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed shards this parameter (ZeRO 3) or its optimiser state (ZeRO 1 and 2)."""
    return hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id")


def start_optimizer(engine: Any) -> None:
    """Create the optimiser's initial state, normally made at the first update, so that it can be saved or restored."""
    states = _optimizer(engine).state
    for flat in _updated_tensors(engine):
        states[flat] = {"step": torch.tensor(0.0), **{moment: torch.zeros_like(flat) for moment in MOMENTS}}
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # links each parameter to its slice of the flat moments


def set_num_updates(engine: Any, number: int) -> None:
    """Set the number of updates done, which Adam's bias correction uses."""
    states = _optimizer(engine).state
    for flat in _updated_tensors(engine):
        states[flat]["step"].fill_(float(number))
    engine.global_steps = number


def holdings(engine: Any) -> dict[str, Slice]:
    """Return this rank's slices of the optimiser's state by ``<kind>.<parameter>``: writable views.

    At stage 0 every rank holds everything; at other stages no element is held by two ranks.
    """
    kinds = (*MOMENTS, MASTER) if engine.bfloat16_enabled() else MOMENTS
    found = {}
    for name, parameter in named_parameters(engine):
        for kind in kinds:
            piece = _held(engine, parameter, kind)
            if piece is not None:
                found[f"{kind}.{name}"] = piece
    return found


def weight_slices(engine: Any) -> dict[str, Slice]:
    """Return this rank's slices of the weights that ZeRO 3 shards, frozen ones included, by ``master.<parameter>``.

    Empty at other stages. Trained weights are fp32; frozen ones have the precision of the model.
    """
    found = {}
    for name, parameter in engine.module.model.named_parameters():
        if not hasattr(parameter, "ds_id"):
            continue
        values = None if parameter.requires_grad else parameter.ds_tensor.detach().flatten()
        piece = _held_of_partition(parameter, None, values=values)
        if piece is not None:
            found[f"{MASTER}.{name}"] = piece
    return found


def averaged_slices(engine: Any) -> dict[str, Slice]:
    """Return the weights and buffers of which averages are made, by the names of the model's ``state_dict``.

    With bf16, of each trained parameter this rank's slice (perhaps empty) of the fp32 masters; all else is whole. Not
    for ZeRO 3.
    """
    found = {name: Slice.whole(tensor) for name, tensor in engine.module.model.state_dict().items()}
    if engine.bfloat16_enabled():
        for name, parameter in named_parameters(engine):
            nothing = Slice(torch.empty(0, device=parameter.device), 0, tuple(parameter.shape))
            found[name] = _held(engine, parameter, MASTER) or nothing
    return found


def _held(engine: Any, parameter: Any, kind: str) -> Slice | None:
    """Return this rank's slice of one kind of state of a parameter."""
    key = None if kind == MASTER else kind
    if hasattr(parameter, "ds_id"):
        return _held_of_partition(parameter, key)
    if not hasattr(parameter, "_hp_mapping"):
        state: Tensor = _optimizer(engine).state[parameter][kind]
        return Slice(state.view(-1), 0, tuple(parameter.shape))
    fragment = parameter._hp_mapping
    if fragment is None:
        return None
    return Slice(fragment.get_hp_fragment(key).detach(), fragment.lp_fragment_address.start, tuple(parameter.shape))


def _held_of_partition(parameter: Any, key: str | None, *, values: Tensor | None = None) -> Slice | None:
    """Like ``_held``, at stage 3, which cuts each parameter into equal slices and pads the last ones.

    ``values`` stand in for the optimiser's fp32 partition, which frozen parameters lack.
    """
    size = parameter.ds_tensor.numel()
    start = size * torch.distributed.get_rank()
    length = min(size, parameter.ds_numel - start)
    if length <= 0:
        return None
    if values is None:
        values = parameter._z3_optimizer.get_local_fp32_param(parameter, key).detach()
    return Slice(values[:length], start, tuple(parameter.ds_shape))


def _optimizer(engine: Any) -> Any:
    """Return the torch optimiser inside DeepSpeed's."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _updated_tensors(engine: Any) -> list[Tensor]:
    """Return the tensors that the torch optimiser updates: parameters, or flat slices of several."""
    grouped = [flat for group in _optimizer(engine).param_groups for flat in group["params"]]
    # Stage 3 puts its slices into the groups only while it steps.
    return list(getattr(engine.optimizer, "fp32_partitioned_groups_flat", grouped))
