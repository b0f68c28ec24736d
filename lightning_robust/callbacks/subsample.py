"""Subsampling: as many examples of every group, or class, as the smallest has."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import GroupsLike, check_bool, check_choice
from lightning_robust.functional.groups import draw_from_groups
from lightning_robust.randomness import generator, resolve_seed


class Subsample(Method):
    """Trains on a subset in which every group, or every class, is as large as the smallest.

    **What changes**: of each group as many examples as the smallest non-empty group has are drawn
    without replacement; an epoch is one pass over these. The subset stays for the whole fit, or
    is drawn anew each epoch with ``redraw``. **Needs** the groups of the training examples; with
    ``by="class"`` only targets. **Costs** nothing; epochs are shorter, and a schedule computed
    from the length of the loader does not know.

    Args:
        groups: The group of every training example: a tensor, array or list (n,), or a CSV or
            Parquet file (see :func:`~lightning_robust.contracts.resolve_groups`); ``None`` takes
            ``dataset.groups``. Not used with ``by="class"``.
        by: What is balanced, ``"group"`` or ``"class"``.
        redraw: Draw another subset each epoch.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: groups are missing, of the wrong length, type or
            range, or there is only one.

    Logged keys:
        ``subsample/num_examples``: size of the subset.

    References:
        "Subsampling" of Section 4 of Sagawa et al., ICML 2020 (arXiv:2005.04345), and SUBG of
        Idrissi et al., CLeaR 2022 (arXiv:2110.14503). No departure; the papers keep one subset,
        ``redraw`` is an addition.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import Subsample
        >>> trainer = Trainer(callbacks=[Subsample()], logger=False, enable_checkpointing=False)
    """

    state = ("kept",)

    def __init__(
        self,
        groups: GroupsLike | None = None,
        *,
        by: Literal["group", "class"] = "group",
        redraw: bool = False,
        seed: int | None = None,
    ) -> None:
        check_choice("by", by, ("group", "class"))
        check_bool("redraw", redraw)
        self.by = by
        self.redraw = redraw
        self.needs_groups = by == "group"
        super().__init__(groups=groups, seed=seed)

    def reset(self) -> None:
        """No subset before training."""
        self.kept: Tensor | None = None

    def decide(self, epoch: int) -> None:
        """Draw the subset, the first time or each time."""
        if self.kept is not None and not self.redraw:
            return
        groups = self.group_ids if self.by == "group" else self.targets
        counts = torch.bincount(groups)
        sizes = counts[counts > 0].min().expand_as(counts)
        random = generator(resolve_seed(self.seed), "subsample", epoch)
        self.kept = draw_from_groups(groups, sizes, random)

    def vote(self) -> Tensor | None:
        """1 for what is in the subset, else 0."""
        return self.kept

    def report(self) -> dict[str, float | Tensor]:
        """Size of the subset."""
        return {} if self.kept is None else {"subsample/num_examples": float(self.kept.sum())}
