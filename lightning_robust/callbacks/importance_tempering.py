"""Importance tempering (Lu et al., 2022, https://arxiv.org/abs/2209.08745)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    ContractError,
    GroupsLike,
    check_at_least,
    check_bool,
    check_choice,
    check_integer,
    check_positive,
)
from lightning_robust.steering import Steer


class ImportanceTempering(Method):
    """Gives small groups, or classes, a larger margin, by a temperature each in the loss.

    **What changes**: while training, the logits z of an example of group g are divided by the
    group's ``margin``, so that the loss is that of ``z / margin_g``. A network that fits all
    examples ends where group g is ``margin_g`` times as far from the boundary as a group of margin
    1 (Theorem 1); weights on the loss would not change where it ends. By default the margin is
    ``(n_max / n_g) ** 0.5``: 1 for the largest group, more for smaller ones. Outside training the
    logits are the model's own. **Needs** the groups of the training examples; with ``by="class"``
    only targets; and a model that reaches zero training error, below that it does harm. **Costs**
    one multiplication of the logits.

    Args:
        groups: The group of every training example: a tensor, array or list (n,), or a CSV or
            Parquet file (see :func:`~lightning_robust.contracts.resolve_groups`); ``None`` takes
            ``dataset.groups``. Not used with ``by="class"``.
        by: What has a margin, ``"group"`` or ``"class"``.
        power: gamma >= 0 of the rule ``(n_max / n_g) ** gamma``; the bound of Theorem 2 is best at
            .5, 0 is plain training.
        margins: Margins > 0 in place of the rule: for each group by its name or number, or for each
            class by its label, as in ``{"landbird_water": 0.02, ...}``. *Larger is for the group
            that is to be kept further away.* The paper's Appendix E.2 lists these numbers, as
            "temperatures", and its formulas their inverses, f = 1 / margin.
        on: Where the temperature is (Section 3.2): ``"features"`` divides all logits of an example
            by the margin of its group, as if its features had been (Eq. 3); ``"classifier"``, for
            classes only, divides the logit of class k by the margin of class k in every example, as
            if the classifier's rows had been (Eq. 4).
        pretrain_epochs: Epochs with the rule at ``pretrain_power`` first, where a large margin is
            hard to optimise (Appendix E.1: 100 of 400).
        pretrain_power: gamma of these epochs.
        normalise: Multiply the loss of an example by its margin, so that a temperature changes
            where training ends, but not how large the first steps for an example are.
        head: Name of the module that returns the logits; ``None`` finds it.

    Raises:
        ContractError: Before the first step: groups are missing, of the wrong length, type or
            range, or there is only one; a value is out of range; ``margins`` miss a group or name
            an unknown one; ``on="classifier"`` with groups or a head of one output; the head is not
            found.

    Logged keys: none.

    References:
        Section 2, Theorems 1 and 2, Eq. 3 and 4, Appendix E. The head's bias is tempered with its
        weights, as the network's whole output in Section 2; Section 3.2 has no bias. Departure:
        ``normalise`` is not in the paper.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import ImportanceTempering
        >>> method = ImportanceTempering(by="class", on="classifier")
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("pretraining",)

    def __init__(
        self,
        groups: GroupsLike | None = None,
        *,
        by: Literal["group", "class"] = "group",
        power: float = 0.5,
        margins: dict[Any, float] | None = None,
        on: Literal["features", "classifier"] = "features",
        pretrain_epochs: int = 0,
        pretrain_power: float = 0.2,
        normalise: bool = False,
        head: str | None = None,
    ) -> None:
        check_choice("by", by, ("group", "class"))
        check_at_least("power", power, 0.0)
        for key, margin in (margins or {}).items():
            check_positive(f"margins[{key!r}]", margin)
        check_choice("on", on, ("features", "classifier"))
        if on == "classifier" and by == "group":
            raise ContractError(
                'on="classifier" tempers classes, and by="group" gives margins to groups; use '
                'by="class", or on="features"'
            )
        check_integer("pretrain_epochs", pretrain_epochs, 0)
        check_at_least("pretrain_power", pretrain_power, 0.0)
        check_bool("normalise", normalise)
        self.by = by
        self.power = power
        self.margins = margins
        self.on = on
        self.pretrain_epochs = pretrain_epochs
        self.pretrain_power = pretrain_power
        self.normalise = normalise
        self.needs_groups = by == "group"
        super().__init__(groups=groups, head=head)

    def reset(self) -> None:
        """The first epoch decides."""
        self.pretraining = False

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Compute the margins of both stages."""
        steering = self.conductor.steering
        assert steering is not None
        if self.on == "classifier" and getattr(steering.head, "out_features", None) == 1:
            raise ContractError(
                'on="classifier" tempers the classifier of each class, and this head has one '
                'output for two; use on="features"'
            )
        ids = self.group_ids if self.by == "group" else self.targets
        names = self.group_names if self.by == "group" else tuple(map(str, range(self.num_classes)))
        counts = torch.bincount(ids, minlength=len(names))
        ratios = counts.max() / counts.double().where(counts > 0, counts.max())
        device = self.conductor.module.device
        self._ids = ids.to(device)
        self._early = (ratios**self.pretrain_power).float().to(device)
        margins = ratios**self.power if self.margins is None else self._given(names, counts)
        self._final = margins.float().to(device)

    def decide(self, epoch: int) -> None:
        """Pass to the second stage when it is time."""
        self.pretraining = epoch < self.pretrain_epochs

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """Divide by margins."""
        table = self._early if self.pretraining else self._final
        margins = table[self._ids[indices]]
        if self.on == "features":
            scale = 1 / margins
        else:  # classes beyond the last that has an example keep their logits
            scale = F.pad(1 / table, (0, logits.shape[1] - len(table)), value=1.0)
            scale = scale.expand(len(indices), -1)
        return Steer(scale=scale, weight=margins if self.normalise else None)

    def _given(self, names: tuple[str, ...], counts: Tensor) -> Tensor:
        """The user's margins, in order; 1 where there is no example and none is given."""
        assert self.margins is not None
        numbers: dict[Any, int] = {name: number for number, name in enumerate(names)}
        numbers |= {number: number for number in range(len(names))}
        if unknown := [key for key in self.margins if key not in numbers]:
            raise ContractError(
                f"margins name {unknown[0]!r}, which is no {self.by}; there are {list(names)}"
            )
        given = {numbers[key]: margin for key, margin in self.margins.items()}
        missing = [name for n, name in enumerate(names) if counts[n] and n not in given]
        if missing:
            raise ContractError(
                f"margins have no entry for the {self.by} {missing[0]!r}; give each {self.by} one"
            )
        return torch.tensor([given.get(number, 1.0) for number in range(len(names))])
