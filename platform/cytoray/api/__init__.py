"""The Python face people know from the model card: scGPT, its configuration and its fine-tuning; without Ray.

``scgpt = scGPT(scGPTConfig(model="models:/scgpt@champion")); scgpt.get_embeddings(scgpt.process_data(adata))``
"""

from cytoray.api.config import scGPTConfig
from cytoray.api.dataset import GeneReport, scGPTDataset
from cytoray.api.finetuning import scGPTFineTuningModel
from cytoray.api.model import scGPT

__all__ = ["GeneReport", "scGPT", "scGPTConfig", "scGPTDataset", "scGPTFineTuningModel"]
