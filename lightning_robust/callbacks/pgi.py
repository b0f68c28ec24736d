"""PGI: group-invariant predictions (Ahmed et al., ICLR 2021).

https://openreview.net/forum?id=b9PoimzZFJ
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._inferred import _Inferred
from lightning_robust.contracts import Groups, check_at_least, check_bool
from lightning_robust.functional.environments import environment_groups, infer_environments
from lightning_robust.functional.groups import balancing_weights
from lightning_robust.functional.invariance import class_predictions, group_invariance_penalty


class PGI(_Inferred):
    """Infers two environments from an early model, and predicts the same in both, class by class.

    **What changes**: for ``identification_epochs`` epochs the model trains as usual. Then each
    class is split in two environments, easy and hard, as by ``EIIL``. The model starts again from
    its initial weights; from there on the divergence between the mean predictions of the two, for
    each class of the batch, averaged over these, is added to the loss. The logged loss stays the
    user's. **Needs** targets, no groups; a loss that averages over the batch. **Costs** one forward
    pass over the training set, and a softmax a batch; under DDP one all-reduce of 2C (C + 1)
    numbers: the means are those of the batch over all ranks. A checkpoint written before the second
    training also holds the initial weights.

    Args:
        identification_epochs: Epochs of the first training; the model must be early, and biased.
        penalty: lambda >= 0 of the divergence.
        balanced_sampling: Draw every environment of every class equally often, with replacement, so
            that batches have some of each.
        reinitialise: Start again from the initial weights; otherwise the model trains on.
        clean_dataset: The training examples without augmentation, in the same order; the
            environments are inferred on these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. After the first training: outputs that
            are not finite.

    Logged keys, once inferred:
        ``pgi/hard_rate``: share of the training set in the hard environments.

    References:
        Section 3, the invariance penalty on inferred groups. Departures: environments are those of
        EIIL in closed form (:func:`~lightning_robust.functional.environments.infer_environments`);
        the divergence is ``KL(easy || hard)``, its mean over the classes, so that lambda means the
        same however many there are, added from the first batch of the second training on, without a
        schedule; classes and environments are balanced by sampling.
        With manual optimisation the penalty is added to each backward pass, whatever the loss was
        divided by.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import PGI
        >>> method = PGI(identification_epochs=2, penalty=10.0)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        identification_epochs: int = 1,
        *,
        penalty: float = 1.0,
        balanced_sampling: bool = True,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_at_least("penalty", penalty, 0)
        check_bool("balanced_sampling", balanced_sampling)
        self.penalty = penalty
        self.balanced_sampling = balanced_sampling
        super().__init__(
            identification_epochs,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            head=head,
            seed=seed,
        )

    @property
    def inferred(self) -> Groups:
        """The environments of each class, once inferred, for any method that takes ``groups=``."""
        ids = super().inferred.ids
        return Groups(*environment_groups(ids % 2 == 1, ids // 2, self.num_classes))

    def vote(self) -> Tensor | None:
        """1 / size of the class's environment."""
        return self._balancing if self.ids is not None and self.balanced_sampling else None

    def penalise(self, indices: Tensor, features: Tensor, logits: Tensor) -> Tensor | None:
        """The divergence between the environments of the batch over all ranks."""
        if self.ids is None or self.penalty == 0:
            return None
        sums, counts = class_predictions(logits, self._groups[indices], 2 * self.num_classes)
        own = torch.cat([sums.detach(), counts.unsqueeze(1)], 1)
        others = self.conductor.sum_over_ranks(own.clone()) - own
        # DDP averages gradients over ranks, and each has those of its own examples.
        factor = self.penalty * float(self.conductor.trainer.world_size)
        return factor * group_invariance_penalty(sums + others[:, :-1], counts + others[:, -1])

    def report(self) -> dict[str, float | Tensor]:
        """Share of the hard environments."""
        return {} if self.ids is None else {"pgi/hard_rate": (self.ids % 2).float().mean()}

    def _infer(self, epoch: int) -> Tensor:
        logits = self.observe("logits", dataset=self.clean_dataset).logits
        assert logits is not None
        environments = infer_environments(logits, self.targets)
        return environment_groups(environments, self.targets, self.num_classes)[0]

    def _build(self) -> None:
        assert self.ids is not None
        self._balancing = balancing_weights(self.ids, 2 * self.num_classes)
        self._groups = self.ids.to(self.conductor.module.device)
