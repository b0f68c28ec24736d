"""JTT: just train twice (Liu et al., ICML 2021, https://arxiv.org/abs/2107.09044)."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._base import Method
from lightning_robust.contracts import (
    check_at_least,
    check_bool,
    check_clean_dataset,
    check_integer,
)


class JTT(Method):
    """Trains for a while, and then again, drawing more often what was misclassified.

    **What changes**: for ``identification_epochs`` epochs the model trains as usual. What it
    misclassifies then is the error set; from there on examples are drawn with replacement, those
    of the error set ``1 + upweight`` times as often as others. The model starts again from its
    initial weights, with fresh optimizers and schedules. **Needs** targets, no groups; but both
    arguments must be tuned, for which the paper has a validation set with groups. **Costs** one
    forward pass over the training set. A checkpoint written before the second training also holds
    the initial weights.

    Args:
        identification_epochs: T, epochs of the first training.
        upweight: lambda >= 0, how many copies of each misclassified example are added.
        reinitialise: Start again from the initial weights; otherwise the model trains on.
        clean_dataset: The training examples without augmentation, in the same order; the errors
            are found on these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. After the first training: outputs that
            are not finite.

    Logged keys, in the second training:
        ``jtt/error_rate``: share of the training set that is in the error set.

    References:
        Algorithm 1; multiplicity 1 + lambda, as in the authors' code (SpuCo has lambda).
        Departure: an epoch of the second training draws as many examples as there are, with
        replacement, in place of one pass over the data and the copies, ``n + lambda * errors``
        examples: epochs keep their length.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import JTT
        >>> method = JTT(identification_epochs=3, upweight=20)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    observes = True
    state = ("initial", "errors")

    def __init__(
        self,
        identification_epochs: int = 1,
        *,
        upweight: float = 50.0,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_integer("identification_epochs", identification_epochs, 1)
        check_at_least("upweight", upweight, 0.0)
        check_bool("reinitialise", reinitialise)
        self.identification_epochs = identification_epochs
        self.upweight = upweight
        self.reinitialise = reinitialise
        self.clean_dataset = clean_dataset
        super().__init__(head=head, seed=seed)

    def reset(self) -> None:
        """No errors before training."""
        self.initial: dict[str, Any] | None = None
        self.errors: Tensor | None = None

    def prepare(self, dataset: Dataset[Any]) -> None:
        """Check what can be checked before the first step."""
        check_clean_dataset(self.clean_dataset, self.num_examples)
        max_epochs = self.conductor.trainer.max_epochs
        if max_epochs is not None and 0 <= max_epochs <= self.identification_epochs:
            warnings.warn(
                f"JTT looks for errors after epoch {self.identification_epochs}, and training ends "
                f"then (max_epochs={max_epochs}): there will be no second training",
                stacklevel=2,
            )

    def begin(self) -> None:
        """Keep the initial weights."""
        if self.reinitialise:
            self.initial = self.conductor.snapshot()

    def decide(self, epoch: int) -> None:
        """Find the errors when it is time, once."""
        if self.errors is not None or epoch < self.identification_epochs:
            return
        logits = self.observe("logits", dataset=self.clean_dataset).logits
        assert logits is not None
        self.errors = logits.argmax(1) != self.targets
        if self.initial is not None:
            self.conductor.restart(self.initial)
            self.initial = None

    def vote(self) -> Tensor | None:
        """1 + lambda for an error, else 1."""
        return None if self.errors is None else 1 + self.upweight * self.errors.double()

    def report(self) -> dict[str, float | Tensor]:
        """Share of errors."""
        return {} if self.errors is None else {"jtt/error_rate": self.errors.float().mean()}
