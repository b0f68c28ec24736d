"""GradMatch: gradient matching (Killamsetty et al., ICML 2021, https://arxiv.org/abs/2103.00123)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._coresets import _Coresets
from lightning_robust.contracts import check_bool, check_positive
from lightning_robust.functional.matching_pursuit import matching_pursuit
from lightning_robust.functional.subsets import members_and_quotas
from lightning_robust.randomness import generator, resolve_seed


class GradMatch(_Coresets):
    """Trains on examples whose weighted gradients sum to nearly that of the whole training set.

    **What changes**: every ``every_n_epochs`` epochs, orthogonal matching pursuit picks from each
    class ``fraction`` of its examples, and weights >= 0, so that the weighted sum of their
    gradients is nearly the class's; an epoch is one pass over these, each loss counted by its
    weight, 1 on average. Where the pursuit ends before it has as many, random examples of average
    weight fill up. **Needs** targets, no groups. **Costs** a forward pass over the training set at
    each selection, and at each pick a product of the (n_c, C) gradients of a class with a vector.
    Epochs are shorter, and a schedule computed from the length of the loader does not know.

    Args:
        fraction: Share of the training set that is kept, in (0, 1]: rounded, at least one example;
            classes have their shares of it, and one example where there is room.
        every_n_epochs: Epochs that a subset serves.
        start_epoch: The first epoch on a subset; before, training is on all examples.
        regularisation: lambda > 0 of the squared norm of the weights. It spreads the weight over
            more examples.
        per_class: Match the gradient of each class by itself; otherwise that of all examples.
        clean_dataset: The training examples without augmentation, in the same order; selections
            are made on these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of what fills up; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. When selecting: gradients that are not
            finite.

    Logged keys, once selected:
        ``grad_match/num_examples``: size of the subset.
        ``grad_match/num_matched``: how many of them the pursuit has found.
        ``grad_match/max_weight``: the largest weight; the mean is 1.

    References:
        Algorithms 1 and 2, and their settings: lambda = 0.5, a new subset every 20 epochs.
        Departures: gradients are those with respect to the logits, which are those of the last
        layer's bias, not also of its weights; non-negative weights are solved for, where the
        authors' code drops what comes out negative; the pursuit does not stop at a tolerance, nor
        at an example that it finds again; what fills up has the mean weight of its class, in the
        code 1; the weights of a class are scaled to its size, and all to a mean of 1. That the rest
        is filled up at random is in the code, and in Section 2.2 of the thesis version of CREST.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import GradMatch
        >>> method = GradMatch(fraction=0.1, every_n_epochs=5)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("kept", "weights", "num_matched")
    _key = "grad_match"

    def __init__(
        self,
        fraction: float = 0.1,
        *,
        every_n_epochs: int = 20,
        start_epoch: int = 0,
        regularisation: float = 0.5,
        per_class: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_positive("regularisation", regularisation)
        self.regularisation = regularisation
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

    def reset(self) -> None:
        """No subset before training."""
        super().reset()
        self.num_matched = 0

    def _select(self, epoch: int, total: int) -> tuple[Tensor, Tensor]:
        gradients = self.observe("gradients", dataset=self.clean_dataset).gradients
        assert gradients is not None
        device = self.conductor.module.device
        random = generator(resolve_seed(self.seed), "grad match", epoch)
        classes = self.targets if self.per_class else None
        picks, weights = [], []
        self.num_matched = 0
        for members, quota in members_and_quotas(classes, self.num_examples, total):
            atoms = gradients[members].to(device, torch.float64)
            found, matched = matching_pursuit(atoms, atoms.sum(0), quota, self.regularisation)
            found, matched = found.cpu(), matched.cpu()
            self.num_matched += len(found)
            others = torch.ones(len(members), dtype=torch.bool)
            others[found] = False
            left = others.nonzero().squeeze(1)
            filled = left[torch.randperm(len(left), generator=random)[: quota - len(found)]]
            average = matched.mean() if len(found) else torch.tensor(1.0, dtype=torch.float64)
            whole = torch.cat([matched, average.expand(len(filled))])
            picks.append(members[torch.cat([found, filled])])
            weights.append(whole / whole.sum() * len(members))
        return torch.cat(picks), torch.cat(weights)

    def report(self) -> dict[str, float | Tensor]:
        """Size of the subset, how much of it was found, and the largest weight."""
        report = super().report()
        return report | {"grad_match/num_matched": float(self.num_matched)} if report else {}
