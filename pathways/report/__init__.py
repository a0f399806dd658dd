"""Reports: descriptions of explanations, tables and figures. Figures are returned, never shown."""

from pathways.maps import collapse_gradient
from pathways.report.describe import describe
from pathways.report.figures import (
    explanation_figure,
    heatmap_figure,
    overlap_figure,
    save_figure,
    training_figure,
    transfer_figure,
)
from pathways.report.frontier import (
    frontier_figure,
    save_sweep,
    sweep_summary,
    variants_figure,
)
from pathways.report.images import explain_images, fit_to_run
from pathways.report.overlap import describe_overlap, overlap_files
from pathways.report.recovery_figure import recovery_figure
from pathways.report.tables import MetricRow, metric_rows

__all__ = [
    "MetricRow",
    "collapse_gradient",
    "describe",
    "describe_overlap",
    "explain_images",
    "explanation_figure",
    "fit_to_run",
    "frontier_figure",
    "heatmap_figure",
    "metric_rows",
    "overlap_figure",
    "overlap_files",
    "recovery_figure",
    "save_figure",
    "save_sweep",
    "sweep_summary",
    "training_figure",
    "transfer_figure",
    "variants_figure",
]
