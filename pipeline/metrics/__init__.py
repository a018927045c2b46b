"""What answers are worth on images with labels: scores, their uncertainty, tables and figures. Knows no models."""

from pipeline.metrics.classification import Agreement, Metrics, agreement, classification_metrics

__all__ = ["Agreement", "Metrics", "agreement", "classification_metrics"]
