"""Small reference models."""

from __future__ import annotations

from lightning_robust.models.classifier import Classifier, SmallConvNet

__all__ = ["Classifier", "SmallConvNet"]
