"""GLISTER: generalisation-based selection (Killamsetty et al., AAAI 2021, arXiv:2012.10630)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_robust.callbacks._coresets import _Coresets
from lightning_robust.contracts import (
    ContractError,
    check_bool,
    check_choice,
    check_integer,
    check_positive,
    targets_of,
)
from lightning_robust.functional.subsets import members_and_quotas
from lightning_robust.functional.taylor import greedy_by_taylor


class GLISTER(_Coresets):
    """Trains on the examples whose gradient steps lower the validation loss most.

    **What changes**: every ``every_n_epochs`` epochs ``fraction`` of the examples is picked
    greedily: the next is the one with which a step of the last layer lowers the loss on the
    validation set most, to first order, where the steps on those picked before are already made.
    An epoch is one pass over these, all weighted alike. **Needs** targets, of the training set and
    of a validation set; no groups. The validation set is then no longer unseen. **Costs** a
    forward pass over the training and the validation set at each selection, and ``rounds`` passes
    over the gradients and features of both. Epochs are shorter, and a schedule computed from the
    length of the loader does not know.

    Args:
        fraction: Share of the training set that is kept, in (0, 1]: rounded, at least one example.
        every_n_epochs: Epochs that a subset serves.
        start_epoch: The first epoch on a subset; before, training is on all examples.
        step_size: eta > 0, of one step on the mean gradient of the whole subset: how far the last
            layer moves while examples are picked.
        rounds: The expansion is made anew this often during a selection, after equally many picks.
        data: Whose loss is to fall: that of the ``"validation"`` set, or of the ``"train"`` set
            itself.
        per_class: Keep the share of each class; otherwise pick from all examples at once.
        clean_dataset: The training examples without augmentation, in the same order; selections
            are made on these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the order of the examples; ``None`` takes the one given to
            ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, no validation set where one is needed, a
            head that is not found, a value out of range, a ``clean_dataset`` of another length.
            When selecting: outputs that are not finite.

    Logged keys, once selected:
        ``glister/num_examples``: size of the subset.

    References:
        Algorithms 1 and 2, without a regulariser; gradients are those of the last
        layer, as in the paper. Departures: a step on an example has the size ``step_size / k`` of
        k picks, where the paper has the learning rate, so that it does not depend on the budget;
        ``per_class`` is an addition.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import GLISTER
        >>> method = GLISTER(fraction=0.1, every_n_epochs=20)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _key = "glister"

    def __init__(
        self,
        fraction: float = 0.1,
        *,
        every_n_epochs: int = 20,
        start_epoch: int = 0,
        step_size: float = 1.0,
        rounds: int = 15,
        data: Literal["validation", "train"] = "validation",
        per_class: bool = False,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_positive("step_size", step_size)
        check_integer("rounds", rounds, 1)
        check_choice("data", data, ("validation", "train"))
        self.step_size = step_size
        self.rounds = rounds
        self.data = data
        check_bool("per_class", per_class)
        self.per_class = per_class
        super().__init__(
            fraction,
            every_n_epochs=every_n_epochs,
            start_epoch=start_epoch,
            clean_dataset=clean_dataset,
            head=head,
            seed=seed,
        )

    def begin(self) -> None:
        """Check the validation set while nothing is lost."""
        if self.data == "validation":
            targets_of(self._validation_set())

    def _select(self, epoch: int, total: int) -> tuple[Tensor, None]:
        device = self.conductor.module.device
        seen = self.observe("gradients", "features", "logits", dataset=self.clean_dataset)
        judge, targets = seen, self.targets
        if self.data == "validation":
            dataset = self._validation_set()
            judge, targets = (
                self.observe("features", "logits", dataset=dataset),
                targets_of(dataset),
            )
        gradients, features = seen.gradients, seen.features
        assert gradients is not None
        assert features is not None
        assert judge.logits is not None
        assert judge.features is not None
        val = judge.logits.to(device), judge.features.to(device), targets.to(device)
        picks = []
        classes = self.targets if self.per_class else None
        for members, quota in members_and_quotas(classes, self.num_examples, total):
            found = greedy_by_taylor(
                gradients[members].to(device),
                features[members].to(device),
                *val,
                quota,
                step_size=self.step_size,
                rounds=self.rounds,
            )
            picks.append(members[found.cpu()])
        return torch.cat(picks), None

    def _validation_set(self) -> Dataset[Any]:
        loaders = self.conductor.validation_loaders()
        loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
        if not isinstance(loader, DataLoader):
            raise ContractError(
                f"data={self.data!r} needs a validation DataLoader with targets; give one, or "
                'data="train"'
            )
        return loader.dataset
