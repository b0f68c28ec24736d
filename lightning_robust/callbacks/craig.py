"""CRAIG: coresets for gradient descent (Mirzasoleiman et al., ICML 2020, arXiv:1906.01827)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._coresets import _Coresets
from lightning_robust.contracts import check_bool, check_choice
from lightning_robust.functional.facility_location import facility_location
from lightning_robust.functional.subsets import members_and_quotas
from lightning_robust.randomness import generator, resolve_seed


class CRAIG(_Coresets):
    """Trains on the medoids of the gradients, each weighted by how many examples it stands for.

    **What changes**: every ``every_n_epochs`` epochs the examples of each class are represented by
    medoids of their gradients, ``fraction`` of them; an epoch is one pass over these, and the loss
    of each counts in proportion to the size of its cluster, 1 on average. **Needs** targets, no
    groups. **Costs** a forward pass over the training set at each selection, and, with
    ``greedy="exact"``, distances between all pairs of examples of a class (never held at once).
    Epochs are shorter, and a schedule computed from the length of the loader does not know.

    Args:
        fraction: Share of the training set that is kept, in (0, 1]: rounded, at least one example;
            classes have their shares of it, and one example where there is room.
        every_n_epochs: Epochs that a subset serves.
        start_epoch: The first epoch on a subset; before, training is on all examples.
        per_class: Pick from each class by itself; otherwise from all examples at once.
        greedy: ``"exact"``, or ``"stochastic"``: each pick is the best of a random sample of the
            candidates, for classes of more than about 50,000 examples.
        clean_dataset: The training examples without augmentation, in the same order; selections
            are made on these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the stochastic greedy picks; ``None`` takes the one given to
            ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. When selecting: gradients that are not
            finite.

    Logged keys, once selected:
        ``craig/num_examples``: size of the subset.
        ``craig/max_weight``: weight of the medoid that stands for most; the mean is 1.

    References:
        Algorithm 1 and, for deep networks, Section 3.4: gradients are bounded by those with
        respect to the input of the last softmax, ``softmax(z) - onehot(y)``. Departures: gradients
        are those with respect to the logits, not times the norm of the last layer's input; weights
        have the mean 1, where the paper has cluster sizes, so that a learning rate keeps its
        meaning; a subset is shuffled like any data, not played in the order of its picks.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import CRAIG
        >>> method = CRAIG(fraction=0.1, every_n_epochs=5, start_epoch=1)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    _key = "craig"

    def __init__(
        self,
        fraction: float = 0.1,
        *,
        every_n_epochs: int = 1,
        start_epoch: int = 0,
        per_class: bool = True,
        greedy: Literal["exact", "stochastic"] = "exact",
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_choice("greedy", greedy, ("exact", "stochastic"))
        self.greedy = greedy
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

    def _select(self, epoch: int, total: int) -> tuple[Tensor, Tensor]:
        gradients = self.observe("gradients", dataset=self.clean_dataset).gradients
        assert gradients is not None
        device = self.conductor.module.device
        random = generator(resolve_seed(self.seed), "craig", epoch)
        classes = self.targets if self.per_class else None
        picks, weights = [], []
        for members, quota in members_and_quotas(classes, self.num_examples, total):
            found = facility_location(
                gradients[members].to(device), quota, method=self.greedy, generator=random
            )
            picks.append(members[found.indices.cpu()])
            weights.append(found.weights.cpu())
        return torch.cat(picks), torch.cat(weights)
