"""SSA: spread spurious attribute (Nam et al., ICLR 2022, https://arxiv.org/abs/2204.02070)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.callbacks._inferred import _InferredDRO
from lightning_robust.callbacks._validation import validation_set
from lightning_robust.contracts import (
    ContractError,
    Groups,
    GroupsLike,
    check_at_least,
    check_choice,
    check_in_range,
    check_integer,
    check_positive,
)
from lightning_robust.functional.groups import draw_from_groups
from lightning_robust.functional.pseudo_groups import fit_group_predictor, group_probabilities
from lightning_robust.randomness import generator, resolve_seed


class SSA(_InferredDRO):
    """Predicts the groups of the training set from few examples with groups, and uses these.

    **What changes**: for ``identification_epochs`` epochs the model trains as usual. Then a linear
    predictor of groups is fitted to the head's inputs: on the examples whose groups are known, and
    on those predictions for the others that it is sure of, no more of a group than of the smallest.
    The unknown are predicted in folds, each by a predictor that was fitted without it. The model
    starts again from its initial weights; from there on the predicted groups are drawn equally
    often, and weighted up while their loss is high, as by ``GroupDRO``. **Needs** targets; groups
    of a validation set, or of a share of the training set. **Costs** a forward pass over the
    training and the validation set, ``num_folds`` fits on the CPU, and then a cross-entropy without
    gradient a batch. A checkpoint written before that also holds the initial weights.

    Args:
        identification_epochs: Epochs of the first training; early, while the features tell the
            spurious attribute.
        data: Whose groups are known: those of the ``"validation"`` set, or of a share of the
            ``"train"`` set.
        validation_groups: Groups of the validation examples; ``None`` takes the validation data
            set's own.
        groups: The group of every training example, for ``data="train"``; ``None`` takes
            ``dataset.groups``. Only those of the share are looked at.
        share: Of each group of each class of the training set, the share that is known with
            ``data="train"``, one example at least.
        threshold: Confidence from which predictions of the smallest group are believed.
        num_folds: K >= 2 parts of the unknown.
        num_steps: Steps of each fit.
        penalty: >= 0, of the squared weights of the predictor.
        step_size: eta >= 0 of Group DRO on the predicted groups; ``None`` leaves the loss alone.
        balanced_sampling: Draw every predicted group equally often, with replacement.
        reinitialise: Start again from the initial weights; otherwise the model trains on.
        clean_dataset: The training examples without augmentation, in the same order; groups are
            predicted on these.
        head: Name of the module that returns the logits; ``None`` finds it.
        seed: Seed of folds and draws; ``None`` takes the one given to ``seed_everything``, else 0.

    Raises:
        ContractError: Before the first step: no targets, no groups where they are to be known, a
            class none of whose examples has a known group, a head that is not found, a value out
            of range, a ``clean_dataset`` of another length. After the first training: features
            that are not finite.

    Logged keys, once predicted:
        ``ssa/num_groups``: how many groups were predicted for at least one example.
        ``ssa/smallest_group``: size of the smallest of these.

    References:
        Section 3: supervised loss and pseudo-labels, thresholds by group, K = 3 folds, Group DRO on
        what was predicted. Departures: the predictor is a linear layer on the features of an early
        model, which has seen the training set with its classes, where the paper trains a network
        anew for each fold; it predicts groups among those of the example's class in place of
        attributes; full-batch steps of a fixed number, where the paper holds out half of the known
        examples to stop.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_robust import SSA
        >>> method = SSA(identification_epochs=3)
        >>> trainer = Trainer(callbacks=[method], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        identification_epochs: int = 1,
        *,
        data: Literal["validation", "train"] = "validation",
        validation_groups: GroupsLike | None = None,
        groups: GroupsLike | None = None,
        share: float = 0.1,
        threshold: float = 0.95,
        num_folds: int = 3,
        num_steps: int = 500,
        penalty: float = 1e-3,
        step_size: float | None = 0.01,
        balanced_sampling: bool = True,
        reinitialise: bool = True,
        clean_dataset: Dataset[Any] | None = None,
        head: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_choice("data", data, ("validation", "train"))
        check_in_range("share", share, 0, 1)
        check_positive("share", share)
        check_in_range("threshold", threshold, 0, 1)
        check_integer("num_folds", num_folds, 2)
        check_integer("num_steps", num_steps, 1)
        check_at_least("penalty", penalty, 0)
        self.data = data
        self.validation_groups = validation_groups
        self.share = share
        self.threshold = threshold
        self.num_folds = num_folds
        self.num_steps = num_steps
        self.penalty = penalty
        self.needs_groups = data == "train"
        super().__init__(
            identification_epochs,
            step_size=step_size,
            balanced_sampling=balanced_sampling,
            reinitialise=reinitialise,
            clean_dataset=clean_dataset,
            groups=groups,
            head=head,
            seed=seed,
        )

    def begin(self) -> None:
        """Check the examples of known groups while nothing is lost."""
        super().begin()
        if self.data == "validation":
            _, groups, targets = self._validation_set()
            _options(groups, targets, self.num_classes, self.targets)

    def report(self) -> dict[str, float | Tensor]:
        """Number of groups, and size of the smallest."""
        if self.ids is None:
            return {}
        counts = torch.bincount(self.ids)
        counts = counts[counts > 0].float()
        return {"ssa/num_groups": float(len(counts)), "ssa/smallest_group": counts.min()}

    def _infer(self, epoch: int) -> Tensor:
        features = self._features(self.clean_dataset)
        mean, deviation = features.mean(0), features.std(0, correction=0)
        features = (features - mean) / deviation.where(deviation > 0, 1.0)
        random = generator(resolve_seed(self.seed), "ssa")
        unknown = torch.arange(self.num_examples)
        if self.data == "validation":
            dataset, groups, targets = self._validation_set()
            known = (self._features(dataset) - mean) / deviation.where(deviation > 0, 1.0)
            ids = torch.zeros(self.num_examples, dtype=torch.int64)
        else:
            cells = self.group_ids * self.num_classes + self.targets
            sizes = (self.share * torch.bincount(cells)).ceil().long()
            drawn = draw_from_groups(cells, sizes, random)
            groups = Groups(self.group_ids[drawn], self.group_names)
            targets, known, unknown = self.targets[drawn], features[drawn], unknown[~drawn]
            ids = self.group_ids.where(drawn, 0)
        options = _options(groups, targets, self.num_classes, self.targets)

        folds = torch.randperm(len(unknown), generator=random) % self.num_folds
        for fold in range(self.num_folds):
            held, others = unknown[folds == fold], unknown[folds != fold]
            weight, bias = fit_group_predictor(
                known,
                groups.ids,
                options[targets],
                features[others],
                options[self.targets[others]],
                threshold=self.threshold,
                num_steps=self.num_steps,
                penalty=self.penalty,
            )
            logits = features[held] @ weight.T + bias
            ids[held] = group_probabilities(logits, options[self.targets[held]]).argmax(1)
        return ids

    def _features(self, dataset: Dataset[Any] | None) -> Tensor:
        features = self.observe("features", dataset=dataset).features
        assert features is not None
        return features.double()

    def _validation_set(self) -> tuple[Dataset[Any], Groups, Tensor]:
        return validation_set(
            self.conductor,
            self.validation_groups,
            f"SSA and data={self.data!r}",
            'data="train" and groups of the training set',
        )


def _options(groups: Groups, targets: Tensor, num_classes: int, needed: Tensor) -> Tensor:
    """The groups that each class is known to have, (C, G) bool; each needed class has one."""
    options = torch.zeros(max(num_classes, int(targets.max()) + 1), groups.num_groups).bool()
    options[targets, groups.ids] = True
    for label in needed.unique().tolist():
        if not bool(options[label].any()):
            raise ContractError(
                f"no example of class {label} has a known group; give at least one of each class"
            )
    return options
