"""Reports: descriptions of explanations, tables and figures. Figures are returned, never shown."""

from pathways.report.describe import describe, describe_overlap
from pathways.report.figures import (
    collapse_gradient,
    explanation_figure,
    heatmap_figure,
    overlap_figure,
    save_figure,
    training_figure,
    transfer_figure,
)
from pathways.report.tables import MetricRow, metric_rows

__all__ = [
    "MetricRow",
    "collapse_gradient",
    "describe",
    "describe_overlap",
    "explanation_figure",
    "heatmap_figure",
    "metric_rows",
    "overlap_figure",
    "save_figure",
    "training_figure",
    "transfer_figure",
]
