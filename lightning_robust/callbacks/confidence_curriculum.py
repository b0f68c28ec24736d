"""Confidence curriculum: easy examples first (Varshney et al., DeepLo 2022, as compared in S2L)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._coresets import _Coresets
from lightning_robust.contracts import check_integer
from lightning_robust.functional.subsets import window_by_score


class ConfidenceCurriculum(_Coresets):
    """Trains on what the model is most confident of at first, and on less and less sure examples.

    **What changes**: every ``every_n_epochs`` epochs the examples are ranked by the probability
    that the model gives to their targets; an epoch is one pass over ``fraction`` of them, a window
    of the ranking that begins at the most confident and moves down evenly, to reach the least
    confident in the last of ``curriculum_epochs`` epochs and stay there. **Needs** targets, no
    groups. **Costs** a forward pass over the training set at each selection. Epochs are shorter,
    and a schedule computed from the length of the loader does not know.

    Args:
        fraction: Share of the training set that an epoch plays, in (0, 1]: rounded, at least one
            example.
        curriculum_epochs: In how many epochs the window moves from one end to the other, at least
            2, counted from ``start_epoch``; usually all.
        every_n_epochs: Epochs that a selection serves.
        start_epoch: The first epoch of the curriculum; before, training is on all examples.
        clean_dataset: The training examples without augmentation, in the same order; they are
            ranked by these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the order of the examples; ``None`` takes the one given to
            ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. When ranking: outputs that are not finite.

    Logged keys, once selected:
        ``confidence_curriculum/num_examples``: size of the window.

    References:
        "Confidence Curriculum [...], which selects examples with decreasing confidence during the
        training", Section 3.4.1 of the thesis version of S2L, after Varshney, Mishra and Baral,
        Let the model decide its curriculum for multitask learning, 2022. Departures: neither says
        how a budget is kept; here a window of constant size moves evenly, over a ranking that is
        made anew.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import ConfidenceCurriculum
        >>> method = ConfidenceCurriculum(fraction=0.3, curriculum_epochs=40)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _key = "confidence_curriculum"

    def __init__(
        self,
        fraction: float = 0.5,
        *,
        curriculum_epochs: int = 10,
        every_n_epochs: int = 1,
        start_epoch: int = 0,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_integer("curriculum_epochs", curriculum_epochs, 2)
        self.curriculum_epochs = curriculum_epochs
        super().__init__(
            fraction,
            every_n_epochs=every_n_epochs,
            start_epoch=start_epoch,
            clean_dataset=clean_dataset,
            head=head,
            seed=seed,
        )

    def _select(self, epoch: int, total: int) -> tuple[Tensor, None]:
        losses = self.observe("losses", dataset=self.clean_dataset).losses
        assert losses is not None
        place = min(1.0, (epoch - self.start_epoch) / (self.curriculum_epochs - 1))
        return window_by_score(-losses, total, place).nonzero().squeeze(1), None
