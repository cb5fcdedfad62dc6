"""Run log: a local journal first, MLflow shipped from it in the background."""

from cytoray.tracking.run_log import RunLog
from cytoray.tracking.server import TrackingConfig, prepare_environment
from cytoray.tracking.shipping import SyncReport, sync

__all__ = ["RunLog", "SyncReport", "TrackingConfig", "prepare_environment", "sync"]
