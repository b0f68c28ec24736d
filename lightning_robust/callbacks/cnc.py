"""CnC: correct-n-contrast (Zhang et al., ICML 2022, https://arxiv.org/abs/2203.01517)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_robust.callbacks._batches import over_ranks
from lightning_robust.callbacks._inferred import _Inferred
from lightning_robust.contracts import check_bool, check_positive, check_probability
from lightning_robust.functional.contrastive import prediction_contrast
from lightning_robust.functional.groups import balancing_weights
from lightning_robust.steering import Steer


class CnC(_Inferred):
    """Brings examples of a class together that an early model predicts differently.

    **What changes**: for ``identification_epochs`` epochs the model trains as usual; then its
    predictions are noted. The model starts again from its initial weights. From there on the user's
    loss counts ``1 - contrast``, and ``contrast`` times a contrastive loss on the head's inputs is
    added: an example's positives are those in the batch of the same class and another noted
    prediction, its negatives those of another class and the same prediction. The logged loss stays
    the user's. **Needs** targets, no groups; a loss that averages over the batch; batches large
    enough to hold positives and negatives. **Costs** one forward pass over the training set, and
    the similarities of all pairs of a batch; under DDP a gather of the batch's features. A
    checkpoint written before the second training also holds the initial weights.

    Args:
        identification_epochs: Epochs of the first training; the model must be early, and biased.
        contrast: lambda in [0, 1], share of the contrastive loss.
        temperature: tau > 0 of the similarities, which are cosines.
        balanced_sampling: Draw every pair of class and noted prediction equally often, with
            replacement, so that batches have some of each.
        reinitialise: Start again from the initial weights; otherwise the model trains on.
        clean_dataset: The training examples without augmentation, in the same order; the
            predictions are made on these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of the draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, a head that is not found, a value out of
            range, a ``clean_dataset`` of another length. After the first training: outputs that
            are not finite.

    Logged keys, in the second training:
        ``cnc/error_rate``: share of the training set that the first training misclassified.

    References:
        Section 4: the supervised contrastive loss over positives of the same class and another
        prediction and negatives of another class and the same prediction, and its convex
        combination with cross-entropy. Departures: positives and negatives are those of the
        training batch, drawn balanced, where the paper assembles a set of each for every anchor;
        every example is an anchor, not those alone that the first model predicts right, which
        includes the paper's two-sided sampling. With manual optimisation the contrastive loss is
        added to each backward pass, whatever the loss was divided by.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import CnC
        >>> method = CnC(identification_epochs=3, contrast=0.75)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    state = ("initial", "ids", "predictions")

    def __init__(
        self,
        identification_epochs: int = 1,
        *,
        contrast: float = 0.5,
        temperature: float = 0.1,
        balanced_sampling: bool = True,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_probability("contrast", contrast)
        check_positive("temperature", temperature)
        check_bool("balanced_sampling", balanced_sampling)
        self.contrast = contrast
        self.temperature = temperature
        self.balanced_sampling = balanced_sampling
        super().__init__(
            identification_epochs,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            head=head,
            seed=seed,
        )

    def reset(self) -> None:
        """No predictions before training."""
        super().reset()
        self.predictions: Tensor | None = None  # (n,) int64

    def vote(self) -> Tensor | None:
        """1 / size of the pair of class and prediction."""
        return self._balancing if self.ids is not None and self.balanced_sampling else None

    def steer(self, indices: Tensor, logits: Tensor) -> Steer | None:
        """The share of the user's loss."""
        if self.ids is None or self.contrast == 0:
            return None
        return Steer(weight=torch.full_like(logits[:, 0], 1 - self.contrast))

    def penalise(self, indices: Tensor, features: Tensor, logits: Tensor) -> Tensor | None:
        """The contrastive loss of the batch over all ranks."""
        if self.ids is None or self.contrast == 0:
            return None
        conductor = self.conductor
        everyone, rank = over_ranks(conductor, indices), conductor.trainer.global_rank
        parts = list(over_ranks(conductor, features.detach()).split(len(features)))
        parts[rank] = features
        loss = prediction_contrast(
            F.normalize(torch.cat(parts).float(), dim=1),
            self._targets[everyone],
            self._predictions[everyone],
            temperature=self.temperature,
        )
        # DDP averages gradients over ranks, and each has those of its own features.
        return loss * (self.contrast * float(conductor.trainer.world_size))

    def report(self) -> dict[str, float | Tensor]:
        """Share of errors of the first training."""
        if self.predictions is None:
            return {}
        return {"cnc/error_rate": (self.predictions != self.targets).float().mean()}

    def _infer(self, epoch: int) -> Tensor:
        logits = self.observe("logits", dataset=self.clean_dataset).logits
        assert logits is not None
        self.predictions = logits.argmax(1)
        return self.targets * logits.shape[1] + self.predictions

    def _build(self) -> None:
        assert self.ids is not None
        assert self.predictions is not None
        device = self.conductor.module.device
        self._balancing = balancing_weights(self.ids, int(self.ids.max()) + 1)
        self._targets = self.targets.to(device)
        self._predictions = self.predictions.to(device)
