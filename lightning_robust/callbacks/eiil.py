"""EIIL: environment inference (Creager et al., ICML 2021, https://arxiv.org/abs/2010.07249)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._inferred import _InferredDRO
from lightning_robust.contracts import Groups, check_bool
from lightning_robust.functional.environments import environment_groups, infer_environments


class EIIL(_InferredDRO):
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
        check_bool("cross_classes", cross_classes)
        self.cross_classes = cross_classes
        super().__init__(
            identification_epochs,
            step_size=step_size,
            balanced_sampling=balanced_sampling,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            head=head,
            seed=seed,
        )

    @property
    def inferred(self) -> Groups:
        """The groups, once inferred, for any method that takes ``groups=``."""
        ids = super().inferred.ids
        if not self.cross_classes:
            return Groups(ids, ("easy", "hard"))
        return Groups(*environment_groups(ids % 2 == 1, self.targets, self.num_classes))

    def report(self) -> dict[str, float | Tensor]:
        """Share of the hard environment."""
        return {} if self.ids is None else {"eiil/hard_rate": (self.ids % 2).float().mean()}

    def _infer(self, epoch: int) -> Tensor:
        logits = self.observe("logits", dataset=self.clean_dataset).logits
        assert logits is not None
        hard = infer_environments(logits, self.targets)
        if not self.cross_classes:
            return hard.long()
        return environment_groups(hard, self.targets, self.num_classes)[0]
