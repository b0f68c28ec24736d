"""What the methods share that are told what another model makes of every training example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import ContractError
from lightning_robust.functional.logits import check_held_out, load_held_out
from lightning_robust.steering import class_logits

Table: TypeAlias = Tensor | npt.NDArray[Any] | str | Path | Callable[[Dataset[Any]], Any]


class _Told(Method):
    """Takes a table with a row a training example: given, in a file, or made by a function.

    Subclasses hold it as an attribute whose name is in ``_table_name``.
    """

    state: ClassVar[tuple[str, ...]] = ("provided",)
    _table_name: ClassVar[str]
    _table_holds: ClassVar[str]  # as "held-out logits"
    _table_form: ClassVar[str] = "a tensor (n, C)"
    _table_maker: ClassVar[str]  # what makes one

    def reset(self) -> None:
        """Nothing provided before training."""
        self.provided: Tensor | None = None

    def _check_table(self, table: object) -> None:
        """Refuse what can be no table; for the constructor."""
        forms = Tensor | np.ndarray | str | Path | None
        if not (isinstance(table, forms) or callable(table)):
            raise ContractError(
                f"{self._table_name} must be a tensor, an array, a file or a function of the "
                f"training set, got {type(table).__name__} ({table!r})"
            )

    def _table(self, dataset: Dataset[Any]) -> Tensor:
        """The table as it comes, on the CPU or where the user has it."""
        name, table = self._table_name, getattr(self, self._table_name)
        if table is None:
            raise ContractError(
                f"{type(self).__name__} needs {self._table_holds} and {name} is None; give "
                f"{self._table_form}, a file, or functools.partial("
                f"lightning_robust.models.{self._table_maker}, network)"
            )
        if isinstance(table, str | Path):
            return load_held_out(table, name)
        if isinstance(table, Tensor | np.ndarray):
            return torch.as_tensor(table).detach()
        if self.provided is None:
            # Every rank computes it, so that none waits past a collective's limit; one's is used.
            provided = table(dataset)
            if not isinstance(provided, Tensor):
                raise ContractError(
                    f"{name} returned a {type(provided).__name__}; let it return {self._table_form}"
                )
            strategy = self.conductor.trainer.strategy
            self.provided = strategy.broadcast(provided.detach().cpu())
        return self.provided

    def _logits(self, dataset: Dataset[Any]) -> Tensor:
        """The table as logits (n, C), checked."""
        logits = self._table(dataset)
        if self.num_classes == 2 and logits.ndim in (1, 2):
            logits = class_logits(logits)
        check_held_out(logits, self.num_examples, self.num_classes, self._table_name)
        return logits

    def _check_head(self, num_classes: int, logits: Tensor) -> None:
        """Refuse a head of another number of classes than the table."""
        if logits.shape[1] != num_classes:
            raise ContractError(
                f"{self._table_name} has {num_classes} classes and the head {logits.shape[1]}; "
                f"give {self._table_holds} of the same classes"
            )
