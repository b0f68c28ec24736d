"""The focal loss (Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import check_at_least
from lightning_robust.functional.losses import focal_weights
from lightning_robust.steering import Steer


class FocalLoss(Method):
    """Makes the cross-entropy of any module the focal loss: what is learned counts little.

    **What changes**: the gradient of each example is multiplied by the ratio of the focal loss's to
    the cross-entropy's, so that the model is trained by ``-(1 - p)^gamma log p``, p the probability
    of its target; exactly so where the module's loss is the cross-entropy of the head's logits. The
    loss you log stays the cross-entropy. **Needs** targets, no groups. **Costs** a softmax without
    gradient a batch.

    Args:
        gamma: >= 0; 0 is plain training.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range.

    Logged keys: none.

    References:
        Eq. 4, with gamma = 2 as in the paper. Its alpha-balanced form (Eq. 5) is this with
        ``ImportanceWeighting(by="class")`` beside it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import FocalLoss
        >>> trainer = Trainer(callbacks=[FocalLoss()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, gamma: float = 2.0, *, head: str | None = None) -> None:
        check_at_least("gamma", gamma, 0.0)
        self.gamma = gamma
        super().__init__(head=head)

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Move the targets to the device."""
        self._targets = self.targets.to(self.conductor.module.device)

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Weigh the batch's examples."""
        return Steer(weight=focal_weights(logits.float(), self._targets[indices], self.gamma))
