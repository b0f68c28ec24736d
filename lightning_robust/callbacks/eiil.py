"""EIIL: environment inference (Creager et al., ICML 2021, https://arxiv.org/abs/2010.07249)."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.callbacks._batches import ascend
from lightning_robust.contracts import (
    Groups,
    check_at_least,
    check_bool,
    check_clean_dataset,
    check_integer,
)
from lightning_robust.functional.environments import environment_groups, infer_environments
from lightning_robust.functional.groups import balancing_weights
from lightning_robust.steering import Steer


class EIIL(Method):
    """Infers two environments from an early model, and balances them, or minimises the worst.

    **What changes**: for ``identification_epochs`` epochs the model trains as usual. Then each
    example goes to the environment that makes the IRMv1 penalty of the two largest, which is by the
    sign of one number an example, and the environments are crossed with the classes. The model
    starts again from its initial weights; from there on the groups are drawn equally often, and
    weighted up while their loss is high, as by ``GroupDRO``. **Needs** targets, no groups.
    **Costs** one forward pass over the training set, and then a cross-entropy without gradient a
    batch. A checkpoint written before the inference also holds the initial weights.

    Args:
        identification_epochs: Epochs of the first training; the model must be early, and biased.
        step_size: eta >= 0 of Group DRO on the inferred groups; ``None`` leaves the loss as it is.
        balanced_sampling: Draw every inferred group equally often. Without this and without
            ``step_size`` groups are only inferred, for you to take from :attr:`inferred`.
        cross_classes: Cross the environments with the classes; otherwise there are two groups.
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
        ``eiil/hard_rate``: share of the training set in the environment of large losses.

    References:
        Section 4, the environment inference objective, and Group DRO on what it finds. Departures:
        the objective is maximised exactly, by
        :func:`~lightning_robust.functional.environments.infer_environments`, where the authors
        take many steps of Adam from random memberships; environments are crossed with classes by
        default. On a model that is certain, the result is nearly its error set, and EIIL is JTT.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import EIIL
        >>> method = EIIL(identification_epochs=2)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    observes = True
    state = ("initial", "environments", "weights")

    def __init__(
        self,
        identification_epochs: int = 1,
        *,
        step_size: float | None = 0.01,
        balanced_sampling: bool = True,
        cross_classes: bool = True,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_integer("identification_epochs", identification_epochs, 1)
        if step_size is not None:
            check_at_least("step_size", step_size, 0.0)
        check_bool("balanced_sampling", balanced_sampling)
        check_bool("cross_classes", cross_classes)
        check_bool("reinitialise", reinitialise)
        self.identification_epochs = identification_epochs
        self.step_size = step_size
        self.balanced_sampling = balanced_sampling
        self.cross_classes = cross_classes
        self.reinitialise = reinitialise
        self.clean_dataset = clean_dataset
        super().__init__(head=head, seed=seed)

    @property
    def inferred(self) -> Groups:
        """The groups, once inferred, for any method that takes ``groups=``."""
        if self.environments is None:
            raise RuntimeError("nothing is inferred yet; EIIL infers in a fit")
        if not self.cross_classes:
            return Groups(self.environments.long(), ("easy", "hard"))
        return Groups(*environment_groups(self.environments, self.targets, self.num_classes))

    def reset(self) -> None:
        """No environments before training."""
        self.initial: dict[str, Any] | None = None
        self.environments: Tensor | None = None  # (n,) bool
        self.weights: Tensor | None = None  # q of the groups

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Check what can be checked before the first step; after a resume, rebuild the tables."""
        check_clean_dataset(self.clean_dataset, self.num_examples)
        max_epochs = self.conductor.trainer.max_epochs
        if max_epochs is not None and 0 <= max_epochs <= self.identification_epochs:
            warnings.warn(
                f"EIIL infers environments after epoch {self.identification_epochs}, and training "
                f"ends then (max_epochs={max_epochs}): there will be no second training",
                stacklevel=2,
            )
        if self.environments is not None:
            self._build()

    def begin(self) -> None:
        """Keep the initial weights."""
        if self.reinitialise:
            self.initial = self.conductor.snapshot()

    def decide(self, epoch: int) -> None:
        """Infer when it is time, once."""
        if self.environments is not None or epoch < self.identification_epochs:
            return
        logits = self.observe("logits", dataset=self.clean_dataset).logits
        assert logits is not None
        self.environments = infer_environments(logits, self.targets)
        self._build()
        if self.initial is not None:
            self.conductor.restart(self.initial)
            self.initial = None

    def _build(self) -> None:
        """The tables that the second training needs."""
        groups, device = self.inferred, self.conductor.module.device
        self._balancing = balancing_weights(groups.ids, groups.num_groups)
        self._groups, self._targets = groups.ids.to(device), self.targets.to(device)
        if self.weights is None:
            present = groups.counts > 0
            self.weights = present / present.sum()
        self.weights = self.weights.to(device)

    def vote(self) -> Tensor | None:
        """1 / size of the inferred group."""
        inferred = self.environments is not None
        return self._balancing if inferred and self.balanced_sampling else None

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """A step of Group DRO on the inferred groups."""
        if self.weights is None or self.step_size is None:
            return None
        losses = F.cross_entropy(logits.float(), self._targets[indices], reduction="none")
        self.weights, weight = ascend(
            self.conductor, self.weights, losses, self._groups[indices], self.step_size
        )
        return Steer(weight=weight)

    def report(self) -> dict[str, float | Tensor]:
        """Share of the hard environment."""
        if self.environments is None:
            return {}
        return {"eiil/hard_rate": self.environments.float().mean()}
