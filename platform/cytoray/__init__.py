"""cytoray: single-cell foundation models from a bucket of count matrices to a served answer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cytoray.api import scGPT, scGPTConfig, scGPTFineTuningModel
    from cytoray.stages.annotate import annotate
    from cytoray.stages.assess import assess
    from cytoray.stages.integrate import integrate
    from cytoray.stages.networks import infer_networks
    from cytoray.tasks.multiomic.protein_model import ProteinModel
    from cytoray.tasks.multiomic.transformer import MultiomicTransformer
    from cytoray.tasks.perturbation.perturbation_model import PerturbationModel

__version__ = "0.1.0"
_OFFERED = {
    "MultiomicTransformer": "cytoray.tasks.multiomic.transformer",
    "PerturbationModel": "cytoray.tasks.perturbation.perturbation_model",
    "ProteinModel": "cytoray.tasks.multiomic.protein_model",
    "annotate": "cytoray.stages.annotate",
    "assess": "cytoray.stages.assess",
    "infer_networks": "cytoray.stages.networks",
    "integrate": "cytoray.stages.integrate",
    "scGPT": "cytoray.api",
    "scGPTConfig": "cytoray.api",
    "scGPTFineTuningModel": "cytoray.api",
}
__all__ = [
    "MultiomicTransformer",
    "PerturbationModel",
    "ProteinModel",
    "annotate",
    "assess",
    "infer_networks",
    "integrate",
    "scGPT",
    "scGPTConfig",
    "scGPTFineTuningModel",
]


def __dir__() -> list[str]:
    """Everything the package offers, what is imported on first use included."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """The Python face, imported when it is first asked for: ``import cytoray`` loads neither torch nor anndata."""
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFERED[name]), name)
