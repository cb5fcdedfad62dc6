"""Load the models of a service, in parallel: most of the time is reading, from the store or the local cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from cytoray.model.device import choose_reserved_device
from cytoray.registry.pinning import PinnedModel, open_pinned
from cytoray.serving.config import AppArgs
from cytoray.serving.hosting.planning import AT_ONCE, PlannedModel
from cytoray.serving.hosting.precision import in_bfloat16
from cytoray.serving.hosting.table import HostedModel, ModelTable
from cytoray.serving.rollout.building import build_slot
from cytoray.serving.service import CellService
from cytoray.tasks.annotation.product import build_predictor
from cytoray.tasks.endpoint import Predictor, ServedModel
from cytoray.tasks.messages import ModelInfo

logger = logging.getLogger(__name__)


def load_table(planned: Sequence[PlannedModel]) -> ModelTable:
    """Load models, each into a slot that follows its alias; raises as ``load_service``."""
    with ThreadPoolExecutor(min(len(planned), AT_ONCE), thread_name_prefix="cytoray-load") as threads:
        slots = list(threads.map(lambda model: build_slot(model.args, model.pinned, load=load_service), planned))
    return ModelTable(
        [
            HostedModel(model.name, slot, model.alias, model.args.precision)
            for model, slot in zip(planned, slots, strict=True)
        ]
    )


def load_service(args: AppArgs, pinned: PinnedModel) -> CellService:
    """Load a pinned model; raises RegistryError, ModelError, DigestError or NotFoundError if that fails.

    ModelError also if its answers in the precision that was asked for differ too much from those in float32.
    """
    bundle = open_pinned(pinned, sources=args.sources()).bundle
    device = choose_reserved_device(args.num_gpus)
    bundle.model.to(device)
    logger.info("the model %s runs on %s", pinned.name, device)
    model = ModelInfo(name=pinned.name, version=pinned.version, digest=pinned.digest)
    predictor: Predictor = build_predictor(bundle, empty_cells="nan")
    if args.precision == "bfloat16":
        predictor = in_bfloat16(
            predictor,
            device=device,
            vocabulary=bundle.vocabulary,
            bounds=args.precision_check,
            name=f"{pinned.name} {pinned.version}",
        )
    served = ServedModel(bundle, predictor, model)
    return CellService(served, limits=args.limits, batching=args.batching)
