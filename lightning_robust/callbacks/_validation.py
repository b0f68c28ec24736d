"""What methods share that learn from a validation set with groups."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_robust.callbacks._conductor import Conductor
from lightning_robust.contracts import (
    ContractError,
    Groups,
    GroupsLike,
    resolve_groups,
    targets_of,
)


def validation_set(
    conductor: Conductor, groups: GroupsLike | None, settings: str, otherwise: str
) -> tuple[Dataset[Any], Groups, Tensor]:
    """The first validation set, its groups and its targets (n,).

    Args:
        conductor: Of the running fit.
        groups: Of the validation examples; ``None`` takes the data set's own.
        settings: Which arguments make it necessary, for the message.
        otherwise: What to give instead.

    Raises:
        ContractError: There is none, or it has no groups or targets.
    """
    loaders = conductor.validation_loaders()
    loader = loaders[0] if isinstance(loaders, list | tuple) and loaders else loaders
    if not isinstance(loader, DataLoader):
        raise ContractError(
            f"{settings} need a validation DataLoader with groups; give one, or {otherwise}"
        )
    found = resolve_groups(groups, loader.dataset, split="val")
    return loader.dataset, found, targets_of(loader.dataset)
