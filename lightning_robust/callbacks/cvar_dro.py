"""CVaR-DRO: the mean of the largest losses (Levy et al., NeurIPS 2020, arXiv:2010.05893)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.callbacks._batches import over_ranks
from lightning_robust.contracts import check_in_range, check_integer, check_positive
from lightning_robust.functional.losses import tail_weights
from lightning_robust.steering import Steer


class CVaRDRO(Method):
    """Minimises the mean of the largest losses of each batch.

    **What changes**: of each batch, the share ``alpha`` with the largest losses weighs ``1 /
    alpha``, and the others nothing: the worst case over all subpopulations of at least that share.
    The loss stays the user's own; which losses are large is told by the cross-entropy of the head's
    logits. **Needs** targets, no groups. **Costs** a cross-entropy without gradient and a sort of B
    numbers a batch; under DDP one gathered number an example: the batch is that of all ranks.

    Args:
        alpha: In (0, 1]; 1 is plain training.
        start_epoch: First epoch that is weighed; plain training before.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range.

    Logged keys: none.

    References:
        The mini-batch estimator of the conditional value at risk, exactly the dual form on the
        batch: ``min over t of t + mean(relu(loss - t)) / alpha``. It is biased for small batches,
        as the paper says. Noisy labels are among the largest losses.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import CVaRDRO
        >>> method = CVaRDRO(alpha=0.2)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("active",)

    def __init__(
        self, alpha: float = 0.2, *, start_epoch: int = 0, head: str | None = None
    ) -> None:
        check_in_range("alpha", alpha, 0, 1)
        check_positive("alpha", alpha)
        self.alpha = alpha
        check_integer("start_epoch", start_epoch, 0)
        self.start_epoch = start_epoch
        super().__init__(head=head)

    def reset(self) -> None:
        """The first epoch decides."""
        self.active = False

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Move the targets to the device."""
        self._targets = self.targets.to(self.conductor.module.device)

    def decide(self, epoch: int) -> None:
        """Become active at ``start_epoch``."""
        self.active = epoch >= self.start_epoch

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Weigh the tail of the batch over all ranks."""
        if not self.active:
            return None
        losses = F.cross_entropy(logits.float(), self._targets[indices], reduction="none")
        weights = tail_weights(over_ranks(self.conductor, losses), self.alpha)
        rank = self.conductor.trainer.global_rank
        return Steer(weight=weights[rank * len(losses) : (rank + 1) * len(losses)])
