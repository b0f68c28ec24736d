"""Random subset: the baseline of every data selection."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import check_bool, check_in_range, check_positive
from lightning_robust.functional.subsets import size_of_subset
from lightning_robust.randomness import generator, resolve_seed


class RandomSubset(Method):
    """Trains on a random part of the training set.

    **What changes**: ``fraction`` of the examples, rounded and at least one, are drawn without
    replacement; an epoch is one pass over these. The subset stays for the whole fit, or is drawn
    anew each epoch with ``redraw``. **Needs** targets, only to be exchangeable with the methods it
    is compared with. **Costs** nothing; epochs are shorter, and a schedule computed from the
    length of the loader does not know.

    Args:
        fraction: Share of the training set that is kept, in (0, 1].
        redraw: Draw another subset each epoch.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a value out of range.

    Logged keys:
        ``random_subset/num_examples``: size of the subset.

    References:
        "Random" of Table 2.1 of the thesis version of CREST (Yang et al., ICML 2023), with
        ``redraw``, and "Random Sampling" of S2L (Yang et al., NeurIPS 2024), without. Departure:
        with ``redraw`` two epochs may share examples, where mini-batches of one long pass would
        not.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import RandomSubset
        >>> method = RandomSubset(fraction=0.1)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("kept",)

    def __init__(
        self, fraction: float = 0.1, *, redraw: bool = False, seed: int | None = None
    ) -> None:
        check_in_range("fraction", fraction, 0, 1)
        check_positive("fraction", fraction)
        check_bool("redraw", redraw)
        self.fraction = fraction
        self.redraw = redraw
        super().__init__(seed=seed)

    def reset(self) -> None:
        """No subset before training."""
        self.kept: Tensor | None = None

    def decide(self, epoch: int) -> None:
        """Draw the subset, the first time or each time."""
        if self.kept is not None and not self.redraw:
            return
        random = generator(resolve_seed(self.seed), "random subset", epoch)
        order = torch.randperm(self.num_examples, generator=random)
        self.kept = torch.zeros(self.num_examples, dtype=torch.bool)
        self.kept[order[: size_of_subset(self.fraction, self.num_examples)]] = True

    def vote(self) -> Tensor | None:
        """1 for what is in the subset, else 0."""
        return self.kept

    def report(self) -> dict[str, float | Tensor]:
        """Size of the subset."""
        return {} if self.kept is None else {"random_subset/num_examples": float(self.kept.sum())}
