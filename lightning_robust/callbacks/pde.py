"""PDE: progressive data expansion (Deng et al., NeurIPS 2023, https://arxiv.org/abs/2306.04949)."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    ContractError,
    GroupsLike,
    check_bool,
    check_choice,
    check_integer,
    check_positive,
    resolve_groups,
)
from lightning_robust.functional.groups import draw_from_groups, even_quotas
from lightning_robust.randomness import generator, resolve_seed


class PDE(Method):
    """Warms up on a small group-balanced subset, then adds a few examples at a time.

    **What changes**: for ``warmup_epochs`` epochs the training set is a subset with as many
    examples of each group as the smallest has. Then, and every ``interval`` epochs from there on,
    ``num_new`` examples that were not in it are added, until all are. An epoch is one pass over
    the current set. **Needs** the groups of the training examples, and a checkpoint chosen on the
    validation set's worst group, as line 15 of the algorithm does: late sets lose what early ones
    gained. **Costs** nothing; most of the data is never seen, and a schedule computed from the
    length of the loader does not know that epochs grow.

    Args:
        groups: The group of every training example: a tensor, array or list (n,), or a CSV or
            Parquet file (see :func:`~lightning_robust.contracts.resolve_groups`); ``None`` takes
            ``dataset.groups``. Overlapping attributes: each combination is a group.
        warmup_epochs: T_0, epochs on the balanced subset; these are short.
        interval: J, epochs after each expansion.
        num_new: m, examples added by each expansion.
        cap: Where the smallest group is tiny: take up to this many of each group, and all of those
            that have fewer.
        balanced_expansion: Add equally many of each group while they last (Section 3.2), instead of
            drawing from all that is left (Algorithm 1).
        expansion_policy: ``"progressive"``, or ``"attribute_balanced"``, what the authors' command
            for CelebA does: the first expansion replaces the set by a new one in which, for each
            attribute, all classes have as many examples as the smallest; later ones add to it.
        attributes: The attribute of every training example, like ``groups``; for
            ``expansion_policy="attribute_balanced"``.
        learning_rate_factor: Multiplies all learning rates, and those that schedules are going to
            set, at the first expansion.
        reset_optimizer: Forget the optimizers' moments at the first expansion.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: groups or attributes are missing, of the wrong length,
            type or range, or there is only one group; a value is out of range.

    Logged keys:
        ``pde/num_examples``: size of the current training set.

    References:
        Algorithm 1 and Section 3.2. Departures from the paper: ``cap`` (its Appendix B, for
        CivilComments) also holds where no group is empty; ``learning_rate_factor`` is in none of
        its formulas, but its Table 6 calls the decay essential, and the code for Waterbirds has
        0.01; momentum is the user's optimizer's, without the factor 1 - gamma of Eq. 3.1.
        Departure from the authors' code: expansions draw without replacement, as the paper says.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import PDE
        >>> method = PDE(warmup_epochs=140, interval=10, num_new=10, learning_rate_factor=0.01)
        >>> trainer = Trainer(
        ...     max_epochs=300, callbacks=[method], logger=False, enable_checkpointing=False
        ... )
    """

    needs_groups = True
    state = ("kept",)

    def __init__(
        self,
        groups: GroupsLike | None = None,
        *,
        warmup_epochs: int = 140,
        interval: int = 10,
        num_new: int = 10,
        cap: int | None = None,
        balanced_expansion: bool = False,
        expansion_policy: Literal["progressive", "attribute_balanced"] = "progressive",
        attributes: GroupsLike | None = None,
        learning_rate_factor: float = 1.0,
        reset_optimizer: bool = False,
        seed: int | None = None,
    ) -> None:
        check_integer("warmup_epochs", warmup_epochs, 1)
        check_integer("interval", interval, 1)
        check_integer("num_new", num_new, 1)
        if cap is not None:
            check_integer("cap", cap, 1)
        check_bool("balanced_expansion", balanced_expansion)
        check_choice("expansion_policy", expansion_policy, ("progressive", "attribute_balanced"))
        if (expansion_policy == "attribute_balanced") != (attributes is not None):
            raise ContractError(
                f"expansion_policy={expansion_policy!r} and attributes="
                f"{'None' if attributes is None else '...'} do not go together; attributes= is "
                'what "attribute_balanced" balances, give both or neither'
            )
        check_positive("learning_rate_factor", learning_rate_factor)
        check_bool("reset_optimizer", reset_optimizer)
        self.warmup_epochs = warmup_epochs
        self.interval = interval
        self.num_new = num_new
        self.cap = cap
        self.balanced_expansion = balanced_expansion
        self.expansion_policy = expansion_policy
        self.attributes = attributes
        self.learning_rate_factor = learning_rate_factor
        self.reset_optimizer = reset_optimizer
        super().__init__(groups=groups, seed=seed)

    def reset(self) -> None:
        """No set before training."""
        self.kept: Tensor | None = None

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Read the attributes; warn where training ends with the warm-up."""
        if self.attributes is not None:
            attributes = resolve_groups(self.attributes, dataset, split="train").ids
            self._cells = attributes * self.num_classes + self.targets
        max_epochs = self.conductor.trainer.max_epochs
        if max_epochs is not None and 0 <= max_epochs <= self.warmup_epochs:
            warnings.warn(
                f"PDE warms up for {self.warmup_epochs} epochs, and training ends then "
                f"(max_epochs={max_epochs}): nothing will be added",
                stacklevel=2,
            )

    def decide(self, epoch: int) -> None:
        """Draw the warm-up set; expand it where it is time."""
        if self.kept is None:
            counts = torch.bincount(self.group_ids)
            size = max(int(counts[counts > 0].min()), self.cap or 0)
            self.kept = draw_from_groups(
                self.group_ids, torch.full_like(counts, size), self._random(0)
            )
        number, late = divmod(epoch - self.warmup_epochs, self.interval)
        if number >= 0 and late == 0:
            self._expand(number + 1)

    def vote(self) -> Tensor | None:
        """1 for what is in the current set, else 0."""
        return self.kept

    def report(self) -> dict[str, float | Tensor]:
        """Size of the current set."""
        return {} if self.kept is None else {"pde/num_examples": float(self.kept.sum())}

    def _random(self, expansion: int) -> torch.Generator:
        return generator(resolve_seed(self.seed), "pde", expansion)

    def _expand(self, number: int) -> None:
        """Expansion ``number``, from 1."""
        assert self.kept is not None
        random = self._random(number)
        if number == 1:
            if self.learning_rate_factor != 1:
                self.conductor.scale_learning_rates(self.learning_rate_factor)
            if self.reset_optimizer:
                self.conductor.reset_moments()
            if self.expansion_policy == "attribute_balanced":
                self.kept = self._balanced_by_attribute(random)
                return
        unused = (~self.kept).nonzero().squeeze(1)
        strata = self.group_ids[unused] if self.balanced_expansion else torch.zeros_like(unused)
        quotas = even_quotas(torch.bincount(strata), self.num_new, random)
        self.kept = self.kept.clone()
        self.kept[unused[draw_from_groups(strata, quotas, random)]] = True

    def _balanced_by_attribute(self, random: torch.Generator) -> Tensor:
        num_cells = self.num_classes * (int(self._cells.max()) // self.num_classes + 1)
        counts = torch.bincount(self._cells, minlength=num_cells).view(-1, self.num_classes)
        absent = counts == 0
        sizes = counts.masked_fill(absent, self.num_examples).amin(1, keepdim=True)
        return draw_from_groups(self._cells, sizes.expand_as(counts).reshape(-1), random)
