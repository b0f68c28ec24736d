"""Small reference models, and models that tell what another has not seen."""

from __future__ import annotations

from lightning_robust.models.classifier import Classifier, SmallConvNet
from lightning_robust.models.clip import Encoders, SpuriousAwareCLIP, open_clip_encoders
from lightning_robust.models.proxy import loss_trajectories
from lightning_robust.models.resnet20 import ResNet20
from lightning_robust.models.sam import SAM
from lightning_robust.models.xrm import (
    XRM,
    CrossRisk,
    cross_risk,
    held_out_logits,
    k_fold_logits,
)

__all__ = [
    "SAM",
    "XRM",
    "Classifier",
    "CrossRisk",
    "Encoders",
    "ResNet20",
    "SmallConvNet",
    "SpuriousAwareCLIP",
    "cross_risk",
    "held_out_logits",
    "k_fold_logits",
    "loss_trajectories",
    "open_clip_encoders",
]
