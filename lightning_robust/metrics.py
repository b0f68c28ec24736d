"""How well each group is served: per-group, worst-group and adjusted accuracy as torchmetrics.

Every accuracy here is a reading of the same two counts per group, ``correct`` and ``total``. They
are sums of fixed size, so they add up exactly over batches and processes, and a
`torchmetrics.MetricCollection` of several of these metrics counts every batch only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import (
    dim_zero_cat,
    dim_zero_max,
    dim_zero_min,
    dim_zero_sum,
)
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_robust.contracts import ContractError, check_choice, check_integer
from lightning_robust.functional.explanations import adjusted_iou

__all__ = [
    "AdjustedAccuracy",
    "AdjustedIoU",
    "GroupAccuracy",
    "GroupConfusionMatrix",
    "GroupGap",
    "GroupWise",
    "MeanGroupAccuracy",
    "OverallAccuracy",
    "WorstGroup",
    "WorstGroupAccuracy",
    "group_counts_correct",
]


# --- counting -------------------------------------------------------------------------------------


def group_counts_correct(
    preds: Tensor,
    target: Tensor,
    groups: Tensor,
    num_groups: int,
    *,
    threshold: float = 0.0,
    validate_args: bool = True,
) -> tuple[Tensor, Tensor]:
    """Count the correctly classified examples, and all examples, of every group.

    Groups are counted at their own id, whichever groups the batch holds.

    Args:
        preds: Logits or probabilities (n, C), of which the largest is the predicted class; or the
            scores of a binary head, floating point (n,) or (n, 1), where a score above
            ``threshold`` predicts class 1; or predicted classes, integer or bool (n,).
        target: True classes (n,) or (n, 1), integer or the floats that binary losses ask for.
        groups: Group of each example (n,), integers in [0, num_groups), on any device.
        num_groups: Number of groups, those absent from this batch included.
        threshold: For binary scores only. The default 0 is right for logits; pass 0.5 for
            probabilities. It is never guessed from the values, as a batch of confident logits
            may look like probabilities.
        validate_args: Check the range of ``groups``. On the CPU the check is all but free; for
            groups on an accelerator it waits for the device. Without it, ids out of range end in
            whatever error `torch.Tensor.index_add_` gives on that device. Shapes and dtypes are
            always checked, which never waits.

    Returns:
        The counts ``correct`` and ``total``, both (num_groups,) int64 on the device of ``preds``.

    Raises:
        ContractError: A `ValueError`: shapes do not fit, ``groups`` are no integers, or an id is
            out of range.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
        >>> correct, total = group_counts_correct(
        ...     logits, target=torch.tensor([0, 1, 1]), groups=torch.tensor([0, 3, 3]), num_groups=4
        ... )
        >>> correct
        tensor([1, 0, 0, 1])
        >>> total
        tensor([1, 0, 0, 2])
    """
    predicted, target = _classes(preds, target, threshold)
    groups = _checked_groups(groups, len(predicted), num_groups, validate_args).to(preds.device)

    hits = (predicted == target).to(torch.int64)
    empty = torch.zeros(num_groups, dtype=torch.int64, device=preds.device)
    return empty.index_add(0, groups, hits), empty.index_add(0, groups, torch.ones_like(groups))


def _classes(preds: Tensor, target: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Predicted and true classes, both (n,), or a refusal of their shapes."""
    if preds.is_floating_point() and preds.ndim == 2 and preds.shape[1] > 1:
        predicted = preds.argmax(dim=1)
    elif preds.is_floating_point() and preds.shape[1:] in ((), (1,)):
        predicted = preds.reshape(-1) > threshold
    elif not preds.is_floating_point() and preds.ndim == 1:
        predicted = preds
    else:
        raise ContractError(
            f"preds must be floating point (n, C), (n, 1) or (n,), or integer (n,), got shape "
            f"{tuple(preds.shape)} of {preds.dtype}: flatten it to one prediction an example"
        )
    if target.ndim == 2 and target.shape[1] == 1:
        target = target.reshape(-1)
    if target.shape != predicted.shape:
        raise ContractError(
            f"target must have shape ({len(predicted)},), one class an example of preds, got shape "
            f"{tuple(target.shape)}: turn one-hot or soft targets into classes with argmax(dim=1)"
        )
    return predicted, target


def _checked_groups(groups: Tensor, length: int, num_groups: int, validate_args: bool) -> Tensor:
    """Return ``groups`` as int64, or refuse them; reads values only where they already are."""
    if groups.shape != (length,):
        raise ContractError(
            f"groups must have shape ({length},), one id an example of preds, got shape "
            f"{tuple(groups.shape)}"
        )
    if groups.is_floating_point():
        raise ContractError(
            f"groups must be integers, got {groups.dtype}: convert them with groups.long()"
        )
    groups = groups.to(torch.int64)
    if validate_args and length:
        low, high = (int(bound) for bound in groups.aminmax())
        if low < 0 or high >= num_groups:
            raise ContractError(
                f"groups must lie in [0, num_groups={num_groups}), got ids from {low} to {high}: "
                "pass the number of groups of the whole dataset, or number the groups from 0"
            )
    return groups


# --- accuracies -----------------------------------------------------------------------------------


class _CountsPerGroup(Metric):
    """Counts ``correct`` and ``total`` per group; what they are read as is the subclass's."""

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    plot_legend_name = "Group"

    correct: Tensor
    total: Tensor

    def __init__(
        self, num_groups: int, *, threshold: float = 0.0, validate_args: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_integer("num_groups", num_groups, minimum=1)
        self.num_groups = num_groups
        self.threshold = threshold
        self.validate_args = validate_args
        zeros = torch.zeros(num_groups, dtype=torch.int64)
        self.add_state("correct", zeros, dist_reduce_fx="sum")
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, groups: Tensor) -> None:
        """Count one batch; see `group_counts_correct` for what ``preds`` may be.

        Args:
            preds: Logits or probabilities (n, C), binary scores (n,) or (n, 1), or classes (n,).
            target: True classes (n,) or (n, 1).
            groups: Group of each example (n,), integers in [0, num_groups).

        Raises:
            ContractError: A `ValueError`: shapes do not fit, or a group id is out of range.
        """
        correct, total = group_counts_correct(
            preds,
            target,
            groups,
            self.num_groups,
            threshold=self.threshold,
            validate_args=self.validate_args,
        )
        # Not in place: under inference mode, states must not tie later batches to that mode.
        self.correct = self.correct + correct
        self.total = self.total + total

    def plot(
        self, val: Tensor | Sequence[Tensor] | None = None, ax: Any = None
    ) -> Any:  # torchmetrics' names for these types are private
        """Plot ``val``, or what `compute` gives, on a matplotlib axis.

        Args:
            val: One result of `compute` or `forward`, or a sequence of them to draw over time.
            ax: The axis to draw on; a new figure by default.

        Returns:
            The figure (None when ``ax`` is given) and the axis.
        """
        return self._plot(val, ax)

    def _accuracies(self) -> Tensor:
        """Accuracy per group (num_groups,) float32, NaN where a group has no example.

        Float32 also where the default dtype is bfloat16, as inside a Lightning step.
        """
        return self.correct.float() / self.total

    def _over_present(self, values: Tensor, *, largest: bool) -> Tensor:
        return _extreme(values, self.total > 0, largest=largest)


def _extreme(values: Tensor, present: Tensor, *, largest: bool) -> Tensor:
    """Largest or smallest of the values present; NaN where none is, or where one of them is."""
    idle = -math.inf if largest else math.inf
    kept = torch.where(present, values, idle)
    return torch.where(present.any(), kept.amax() if largest else kept.amin(), math.nan)


class GroupAccuracy(_CountsPerGroup):
    """Accuracy of every group, a vector (num_groups,) with NaN for groups without examples.

    A vector cannot be passed to ``self.log``; log the scalars `WorstGroupAccuracy`,
    `MeanGroupAccuracy`, `AdjustedAccuracy` and `GroupGap`, or the entries one by one.

    Args:
        num_groups: Number of groups of the whole dataset.
        threshold: Binary scores above it predict class 1: 0 for logits, 0.5 for probabilities.
        validate_args: Check that group ids are in range. Waits for the device where ``groups``
            live on an accelerator; turn it off where ids were checked before.
        kwargs: Options of every `torchmetrics.Metric`, such as ``sync_on_compute``.

    Raises:
        ContractError: A `ValueError`: ``num_groups`` is no integer of at least 1.

    Example:
        >>> metric = GroupAccuracy(num_groups=3)
        >>> metric.update(
        ...     preds=torch.tensor([1, 0, 1, 1]),
        ...     target=torch.tensor([1, 0, 0, 1]),
        ...     groups=torch.tensor([0, 0, 2, 2]),
        ... )
        >>> metric.compute()
        tensor([1.0000,    nan, 0.5000])
    """

    def compute(self) -> Tensor:
        """Return the accuracy of every group (num_groups,), NaN where it has no example."""
        return self._accuracies()

    def plot(
        self,
        val: Tensor | Sequence[Tensor] | None = None,
        ax: Any = None,
        labels: Sequence[str] | None = None,
    ) -> Any:
        """Plot a bar for every group, with the worst marked; a sequence of results over time.

        Args:
            val: One result of `compute` or `forward`, or a sequence of them to draw over time.
            ax: The axis to draw on; a new figure by default.
            labels: Names of the groups, for the bars.

        Returns:
            The figure (None when ``ax`` is given) and the axis.

        Raises:
            ContractError: A `ValueError`: ``labels`` are not one a group.
            ModuleNotFoundError: matplotlib is missing.
        """
        val = self.compute() if val is None else val
        if not isinstance(val, Tensor):
            return self._plot(val, ax)
        return _group_bars(val, ax, labels, "accuracy", limits=(0.0, 1.0))


class WorstGroupAccuracy(_CountsPerGroup):
    """Accuracy of the group with the lowest, over the groups that have examples; NaN if none has.

    ``ModelCheckpoint(monitor=..., mode="max")`` on this value is how the papers choose a model.

    Args:
        num_groups: Number of groups of the whole dataset.
        threshold: Binary scores above it predict class 1: 0 for logits, 0.5 for probabilities.
        validate_args: Check that group ids are in range; see `GroupAccuracy`.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: A `ValueError`: ``num_groups`` is no integer of at least 1.

    Example:
        >>> metric = WorstGroupAccuracy(num_groups=3)
        >>> metric.update(
        ...     preds=torch.tensor([1, 0, 1, 1]),
        ...     target=torch.tensor([1, 0, 0, 1]),
        ...     groups=torch.tensor([0, 0, 2, 2]),
        ... )
        >>> metric.compute()
        tensor(0.5000)

    References:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020.
        https://arxiv.org/abs/1911.08731
    """

    def compute(self) -> Tensor:
        """Return the lowest accuracy of a group, a scalar."""
        return self._over_present(self._accuracies(), largest=False)


class MeanGroupAccuracy(_CountsPerGroup):
    """Mean of the group accuracies, every group with examples counting the same; NaN if none has.

    This is what SubpopBench calls adjusted accuracy. GroupDRO and WILDS mean something else by
    that word: `AdjustedAccuracy`.

    Args:
        num_groups: Number of groups of the whole dataset.
        threshold: Binary scores above it predict class 1: 0 for logits, 0.5 for probabilities.
        validate_args: Check that group ids are in range; see `GroupAccuracy`.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: A `ValueError`: ``num_groups`` is no integer of at least 1.

    Example:
        >>> metric = MeanGroupAccuracy(num_groups=3)
        >>> metric.update(
        ...     preds=torch.tensor([1, 0, 1, 1]),
        ...     target=torch.tensor([1, 0, 0, 1]),
        ...     groups=torch.tensor([0, 0, 2, 2]),
        ... )
        >>> metric.compute()
        tensor(0.7500)

    References:
        Yang et al., Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023.
        https://arxiv.org/abs/2302.12254
    """

    def compute(self) -> Tensor:
        """Return the mean accuracy of the groups that have examples, a scalar."""
        return self._accuracies().nanmean()


class AdjustedAccuracy(_CountsPerGroup):
    """Mean of the group accuracies, weighted by how frequent each group is in the training set.

    It is the average accuracy to expect on data mixed like the training set, whatever the mixture
    of the evaluated split: what GroupDRO, and WILDS on Waterbirds, report as average accuracy.

    Groups without examples in the evaluated split are left out and the weights of the others are
    rescaled to sum to one. The value is NaN if nothing was evaluated, or only groups of weight 0.

    Args:
        weights: Training examples per group, or their frequencies (num_groups,): finite, at least
            0, and not all 0. For example ``groups_of(train_set).counts``.
        threshold: Binary scores above it predict class 1: 0 for logits, 0.5 for probabilities.
        validate_args: Check that group ids are in range; see `GroupAccuracy`.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: A `ValueError`: ``weights`` is no vector as described.

    Example:
        >>> metric = AdjustedAccuracy(weights=[90, 500, 10])
        >>> metric.update(
        ...     preds=torch.tensor([1, 0, 1, 1]),
        ...     target=torch.tensor([1, 0, 0, 1]),
        ...     groups=torch.tensor([0, 0, 2, 2]),
        ... )
        >>> metric.compute()  # 0.9 * 1.0 + 0.1 * 0.5, as group 1 was not evaluated
        tensor(0.9500)

    References:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020
        (the average accuracy of its Waterbirds tables). https://arxiv.org/abs/1911.08731
        Koh et al., WILDS: A Benchmark of in-the-Wild Distribution Shifts, ICML 2021.
        https://arxiv.org/abs/2012.07421
    """

    def __init__(
        self,
        weights: Tensor | npt.NDArray[Any] | Sequence[float],
        *,
        threshold: float = 0.0,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        values = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
        if values.ndim != 1 or not (values.isfinite() & (values >= 0)).all() or values.sum() <= 0:
            raise ContractError(
                "weights must be a vector of training counts or frequencies, one a group, finite, "
                f">= 0 and not all 0, got {weights!r}"
            )
        super().__init__(len(values), threshold=threshold, validate_args=validate_args, **kwargs)
        # No buffer: precision plugins would round it to half.
        self.weights = (values / values.sum()).float()

    def compute(self) -> Tensor:
        """Return the accuracy weighted by training frequency, a scalar."""
        weights = self.weights.to(self.total.device) * (self.total > 0)
        return (weights * self._accuracies().nan_to_num(0.0)).sum() / weights.sum()


class GroupGap(_CountsPerGroup):
    """Accuracy of the best group minus that of the worst, over the groups that have examples.

    0 if only one group has examples, NaN if none has. The lower the better.

    Args:
        num_groups: Number of groups of the whole dataset.
        threshold: Binary scores above it predict class 1: 0 for logits, 0.5 for probabilities.
        validate_args: Check that group ids are in range; see `GroupAccuracy`.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: A `ValueError`: ``num_groups`` is no integer of at least 1.

    Example:
        >>> metric = GroupGap(num_groups=3)
        >>> metric.update(
        ...     preds=torch.tensor([1, 0, 1, 1]),
        ...     target=torch.tensor([1, 0, 0, 1]),
        ...     groups=torch.tensor([0, 0, 2, 2]),
        ... )
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the highest minus the lowest accuracy of a group, a scalar."""
        values = self._accuracies()
        best, worst = (self._over_present(values, largest=largest) for largest in (True, False))
        return best - worst


class OverallAccuracy(_CountsPerGroup):
    """Fraction of all examples that are classified correctly, whatever their group.

    What `torchmetrics` calls micro accuracy, from the counts that the group metrics keep anyway: in
    one `torchmetrics.MetricCollection` with them it costs nothing. NaN if there are no examples.

    Args:
        num_groups: Number of groups of the whole dataset.
        threshold: Binary scores above it predict class 1: 0 for logits, 0.5 for probabilities.
        validate_args: Check that group ids are in range; see `GroupAccuracy`.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: A `ValueError`: ``num_groups`` is no integer of at least 1.

    Example:
        >>> metric = OverallAccuracy(num_groups=3)
        >>> metric.update(
        ...     preds=torch.tensor([1, 0, 1, 1]),
        ...     target=torch.tensor([1, 0, 0, 1]),
        ...     groups=torch.tensor([0, 0, 2, 2]),
        ... )
        >>> metric.compute()
        tensor(0.7500)
    """

    def compute(self) -> Tensor:
        """Return the fraction of correct predictions, a scalar."""
        return self.correct.sum().float() / self.total.sum()


class GroupConfusionMatrix(Metric):
    """Which class is predicted for the examples of each class, in every group by itself.

    Args:
        num_groups: Number of groups of the whole dataset.
        num_classes: Number of classes.
        normalize: ``None`` counts examples; ``"true"`` divides by how many examples the group has
            of the class, as in `torchmetrics.ConfusionMatrix`, and is NaN where it has none.
        threshold: Binary scores above it predict class 1: 0 for logits, 0.5 for probabilities.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: A `ValueError`: an argument is refused.

    Example:
        >>> metric = GroupConfusionMatrix(num_groups=2, num_classes=2)
        >>> metric.update(
        ...     preds=torch.tensor([1, 0, 1, 1]),
        ...     target=torch.tensor([1, 0, 0, 1]),
        ...     groups=torch.tensor([0, 0, 1, 1]),
        ... )
        >>> metric.compute()
        tensor([[[1, 0],
                 [0, 1]],
        <BLANKLINE>
                [[0, 1],
                 [0, 1]]])
    """

    full_state_update = False
    is_differentiable = False

    matrices: Tensor

    def __init__(
        self,
        num_groups: int,
        num_classes: int,
        *,
        normalize: str | None = None,
        threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_integer("num_groups", num_groups, minimum=1)
        check_integer("num_classes", num_classes, minimum=2)
        if normalize is not None:
            check_choice("normalize", normalize, ("true",))
        self.num_groups = num_groups
        self.num_classes = num_classes
        self.normalize = normalize
        self.threshold = threshold
        zeros = torch.zeros(num_groups, num_classes, num_classes, dtype=torch.int64)
        self.add_state("matrices", zeros, dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, groups: Tensor) -> None:
        """Count one batch; see `group_counts_correct` for what ``preds`` may be.

        Args:
            preds: Logits or probabilities (n, C), binary scores (n,) or (n, 1), or classes (n,).
            target: True classes (n,) or (n, 1), below ``num_classes``.
            groups: Group of each example (n,), integers in [0, num_groups).

        Raises:
            ContractError: A `ValueError`: shapes do not fit, or an id or class is out of range.
        """
        predicted, target = _classes(preds, target, self.threshold)
        groups = _checked_groups(groups, len(predicted), self.num_groups, True).to(preds.device)
        predicted, target = predicted.long(), target.long()
        for name, classes in (("preds", predicted), ("target", target)):
            if (
                len(classes)
                and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes
            ):
                raise ContractError(
                    f"{name} must be classes in [0, num_classes={self.num_classes}), got "
                    f"{int(classes.min())} to {int(classes.max())}: pass the number of all classes"
                )
        cells = (groups * self.num_classes + target) * self.num_classes + predicted
        counts = self.matrices.flatten().index_add(0, cells, torch.ones_like(cells))
        self.matrices = counts.view_as(self.matrices)

    def compute(self) -> Tensor:
        """Return (num_groups, C, C): true classes down, predicted classes across."""
        if self.normalize is None:
            return self.matrices
        return self.matrices.float() / self.matrices.sum(2, keepdim=True)

    def plot(
        self,
        val: Tensor | None = None,
        ax: Any = None,
        add_text: bool = True,
        labels: Sequence[str] | None = None,
        group_labels: Sequence[str] | None = None,
    ) -> Any:
        """Plot one row for each class of each group that has examples of it.

        Colour is the share of a row; the true class is framed, and the group with the lowest
        accuracy (with ``normalize``, its mean over classes) is marked.

        Args:
            val: One result of `compute` or `forward`.
            ax: The axis to draw on; a new figure by default.
            add_text: Write the values into the cells.
            labels: Names of the classes.
            group_labels: Names of the groups.

        Returns:
            The figure (None when ``ax`` is given) and the axis.

        Raises:
            ContractError: A `ValueError`: ``val`` is no such result, or there are not as many
                labels as there should be.
            ModuleNotFoundError: matplotlib is missing.
        """
        val = self.compute() if val is None else val
        shape = (self.num_groups, self.num_classes, self.num_classes)
        if not isinstance(val, Tensor) or val.shape != shape:
            raise ContractError(f"val must be one result of compute, of shape {shape}, got {val!r}")
        val = val.detach().cpu()
        classes = _labels("labels", labels, self.num_classes)
        groups = _labels("group_labels", group_labels, self.num_groups)
        counts = val.double().nan_to_num(0.0)
        places = counts.sum(2).nonzero()
        rows = counts[places[:, 0], places[:, 1]]
        right = counts.diagonal(dim1=1, dim2=2).sum(1) / counts.sum((1, 2))
        worst = _worst(right)
        alone = len(places[:, 0].unique()) == len(places)

        figure, ax = _figure(ax, len(places), 1.2 * self.num_classes)
        from matplotlib.patches import Rectangle

        shares = (rows / rows.sum(1, keepdim=True)).numpy()
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, (group, true) in enumerate(places.tolist()):
            ax.add_patch(Rectangle((true - 0.5, row - 0.5), 1, 1, fill=False, linewidth=1.5))
            if add_text:
                for column, cell in enumerate(val[group, true].tolist()):
                    dark = shares[row, column] > 0.5
                    text = f"{cell:.2f}" if val.is_floating_point() else str(cell)
                    colour = "white" if dark else "black"
                    ax.text(column, row, text, ha="center", va="center", color=colour)
        ax.set_xticks(range(self.num_classes), classes)
        ax.set_yticks(
            range(len(places)),
            [
                (groups[group] if alone else f"{groups[group]}: {classes[true]}")
                + (" (worst)" if group == worst else "")
                for group, true in places.tolist()
            ],
        )
        for tick, (group, _) in zip(ax.get_yticklabels(), places.tolist(), strict=True):
            tick.set_color(_WORST if group == worst else "black")
        ax.set_xlabel("predicted class (framed: true)")
        ax.set_ylabel("group" if alone else "group: true class")
        return figure, ax


# --- explanations ---------------------------------------------------------------------------------


class AdjustedIoU(Metric):
    """Adjusted overlap of explanation maps with the box of the class, over all or by group.

    Args:
        num_groups: Number of groups of the whole dataset; 1 if there are none.
        reduction: ``"mean"`` over all examples, ``"worst"`` of the means of the groups, or
            ``"none"``: the mean of every group (num_groups,), NaN without examples.
        kwargs: Options of every `torchmetrics.Metric`.

    Raises:
        ContractError: A `ValueError`: an argument is refused.

    Example:
        >>> metric = AdjustedIoU()
        >>> maps = torch.tensor([[[[1.0, 0.0]], [[0.5, 1.0]]]])
        >>> metric.update(maps, boxes=torch.tensor([[[1, 0]]]), target=torch.tensor([0]))
        >>> metric.compute()
        tensor(0.8000)

    References:
        Yang et al., Mitigating Spurious Correlations in Multi-modal Models during Fine-tuning,
        ICML 2023. https://arxiv.org/abs/2304.03916
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    sums: Tensor
    total: Tensor

    def __init__(self, num_groups: int = 1, *, reduction: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_integer("num_groups", num_groups, minimum=1)
        check_choice("reduction", reduction, ("mean", "worst", "none"))
        self.num_groups = num_groups
        self.reduction = reduction
        self.add_state("sums", torch.zeros(num_groups), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_groups), dist_reduce_fx="sum")

    def update(
        self, maps: Tensor, boxes: Tensor, target: Tensor, groups: Tensor | None = None
    ) -> None:
        """Add one batch.

        Args:
            maps: (n, C, h, w) in [0, 1], the explanation of every class.
            boxes: (n, h, w), 1 inside the box of the true class.
            target: True classes (n,).
            groups: Group of each example (n,); ``None`` puts all into group 0.

        Raises:
            ContractError: A `ValueError`: shapes do not fit, or a group id is out of range.
        """
        values = adjusted_iou(maps, boxes, target).float()
        if groups is None:
            groups = torch.zeros_like(target)
        groups = _checked_groups(groups, len(values), self.num_groups, True).to(values.device)
        self.sums = self.sums.index_add(0, groups, values)
        self.total = self.total.index_add(0, groups, torch.ones_like(values))

    def compute(self) -> Tensor:
        """Return the mean, the worst mean, or the mean of every group."""
        if self.reduction == "mean":
            return self.sums.sum() / self.total.sum()
        means = self.sums / self.total
        return means if self.reduction == "none" else _extreme(means, self.total > 0, largest=False)


# --- any metric per group -------------------------------------------------------------------------


class GroupWise(Metric):
    """Any classification metric of torchmetrics, computed for every group on its own.

    The states of the wrapped metric are kept once a group, as states of this one, so they are
    reset, moved, saved, summed over processes and shared within a `torchmetrics.MetricCollection`
    like those of any other metric. A group may be absent from batches, or from all batches of some
    of the processes. (A process that saw no batch at all is more than torchmetrics can gather for
    metrics that store their inputs, such as ``BinaryAUROC()``; ``BinaryAUROC(thresholds=200)``
    stores counts, which are small and gather from everywhere.)

    A metric may itself be undefined on a group: the AUROC of a group with a single class, which is
    every group that is made of one class and one attribute, comes out of torchmetrics as 0 with a
    warning. Group by the attribute alone for such metrics.

    For plain accuracy `GroupAccuracy` is many times faster.

    Args:
        metric: What to compute per group; its ``update`` takes ``preds`` and ``target``, and its
            ``compute`` returns one number. It is copied, not changed; how it synchronises
            (``process_group``, ``sync_on_compute``, ...) is taken over.
        num_groups: Number of groups of the whole dataset.

    Raises:
        ContractError: A `ValueError`: ``metric`` cannot be kept per group (it is a wrapper or a
            collection, or its states do not add up over batches), or ``num_groups`` is no integer
            of at least 1.

    Example:
        >>> from torchmetrics.classification import BinaryAUROC
        >>> metric = GroupWise(BinaryAUROC(), num_groups=3)
        >>> metric.update(
        ...     preds=torch.tensor([0.9, 0.2, 0.1, 0.7, 0.3, 0.0]),
        ...     target=torch.tensor([1, 0, 1, 1, 0, 0]),
        ...     groups=torch.tensor([0, 0, 2, 2, 2, 2]),
        ... )
        >>> metric.compute()
        tensor([1.0000,    nan, 0.7500])
    """

    full_state_update = False
    is_differentiable = False
    plot_legend_name = "Group"

    metric: Metric
    total: Tensor

    def __init__(self, metric: Metric, num_groups: int) -> None:
        check_integer("num_groups", num_groups, minimum=1)
        additive = (dim_zero_sum, dim_zero_cat, dim_zero_min, dim_zero_max)
        if (
            not isinstance(metric, Metric)
            or not metric._defaults
            or metric.full_state_update is not False
            or any(reduction not in additive for reduction in metric._reductions.values())
        ):
            raise ContractError(
                "metric must be a torchmetrics metric whose states add up over batches, such as "
                f"BinaryAUROC(), got {metric!r}: wrap the plain metric, one GroupWise each"
            )
        super().__init__(
            dist_sync_on_step=metric.dist_sync_on_step,
            process_group=metric.process_group,
            dist_sync_fn=metric.dist_sync_fn,
            distributed_available_fn=metric.distributed_available_fn,
            sync_on_compute=metric.sync_on_compute,
        )
        self.num_groups = num_groups
        self.metric = metric.clone()
        self.add_state("total", torch.zeros(num_groups, dtype=torch.int64), dist_reduce_fx="sum")
        for name, default in metric._defaults.items():
            for group in range(num_groups):
                empty: Tensor | list[Tensor] = (
                    default.clone() if isinstance(default, Tensor) else []
                )
                self.add_state(_state(name, group), empty, metric._reductions[name])

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """Whether the wrapped metric is the better the higher it is."""
        return self.metric.higher_is_better

    def update(self, preds: Tensor, target: Tensor, groups: Tensor) -> None:
        """Hand every group's rows of one batch to its own states.

        Args:
            preds: Predictions (n, ...), as the wrapped metric takes them.
            target: Targets (n, ...), as the wrapped metric takes them.
            groups: Group of each example (n,), integers in [0, num_groups).

        Raises:
            ContractError: A `ValueError`: the lengths differ, or a group id is out of range.
        """
        if len(target) != len(preds):
            raise ContractError(
                f"target must have as many rows as preds, {len(preds)}, got {len(target)}"
            )
        groups = _checked_groups(groups, len(preds), self.num_groups, True).to(preds.device)
        sizes = torch.bincount(groups, minlength=self.num_groups)
        order = groups.argsort(stable=True)
        rows = (torch.split(values[order], sizes.tolist()) for values in (preds, target))
        for group, (group_preds, group_target) in enumerate(zip(*rows, strict=True)):
            if len(group_preds):
                self._load(group)
                type(self.metric).update(self.metric, group_preds, group_target)
                self._store(group)
        self.total = self.total + sizes

    def compute(self) -> Tensor:
        """Return the metric of every group (num_groups,), NaN where it has no example.

        Raises:
            ContractError: A `ValueError`: the wrapped metric gives more than one number.
        """
        values = torch.full((self.num_groups,), math.nan, device=self.total.device)
        for group in self.total.nonzero().flatten().tolist():
            self._load(group)
            # The class's own compute: this metric has synchronised and caches, not the wrapped one.
            value = type(self.metric).compute(self.metric)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ContractError(
                    f"metric must compute one number a group, {self.metric} gave {value!r}: "
                    "choose an average, as in MulticlassF1Score(num_classes=3, average='macro')"
                )
            values[group] = value.reshape(())
        return values

    def plot(
        self,
        val: Tensor | Sequence[Tensor] | None = None,
        ax: Any = None,
        labels: Sequence[str] | None = None,
    ) -> Any:
        """Plot a bar for every group, with the worst marked; a sequence of results over time.

        Args:
            val: One result of `compute` or `forward`, or a sequence of them to draw over time.
            ax: The axis to draw on; a new figure by default.
            labels: Names of the groups, for the bars.

        Returns:
            The figure (None when ``ax`` is given) and the axis.

        Raises:
            ContractError: A `ValueError`: ``labels`` are not one a group.
            ModuleNotFoundError: matplotlib is missing.
        """
        val = self.compute() if val is None else val
        if not isinstance(val, Tensor) or not val.ndim:
            return self._plot(val, ax)
        limits = (self.metric.plot_lower_bound, self.metric.plot_upper_bound)
        name = type(self.metric).__name__
        return _group_bars(val, ax, labels, name, limits, self.higher_is_better)

    def _load(self, group: int) -> None:
        for name in self.metric._defaults:
            setattr(self.metric, name, getattr(self, _state(name, group)))

    def _store(self, group: int) -> None:
        for name in self.metric._defaults:
            setattr(self, _state(name, group), getattr(self.metric, name))

    def _sync_dist(
        self,
        dist_sync_fn: Callable[..., Any] = gather_all_tensors,
        process_group: Any | None = None,
    ) -> None:
        """Synchronise, also where this process stored no rows of a group that another one has.

        torchmetrics gathers an empty list as a float vector, which fits neither the dtype nor the
        dimensions of what the others send. No rows of a group that is present here fit both.
        """
        for name in self.metric._defaults:
            lists = [getattr(self, _state(name, group)) for group in range(self.num_groups)]
            rows = next((rows for rows in lists if isinstance(rows, list) and rows), None)
            for group, stored in enumerate(lists):
                if rows and isinstance(stored, list) and not stored:
                    setattr(self, _state(name, group), [rows[0][:0]])
        super()._sync_dist(dist_sync_fn, process_group=process_group)


def _state(name: str, group: int) -> str:
    return f"group{group}_{name}"


class WorstGroup(GroupWise):
    """Any classification metric of torchmetrics, of the group that fares worst: a scalar to log.

    The lowest value over the groups that have examples, or the highest where the lower is better,
    as for calibration errors. NaN if no group has examples, or the metric itself gives NaN on one.

    Args:
        metric: What to compute per group; see `GroupWise`. Its ``higher_is_better`` says what is
            worst.
        num_groups: Number of groups of the whole dataset.

    Raises:
        ContractError: A `ValueError`: ``metric`` cannot be kept per group or does not know whether
            higher is better, or ``num_groups`` is no integer of at least 1.

    Example:
        >>> from torchmetrics.classification import BinaryAUROC
        >>> metric = WorstGroup(BinaryAUROC(), num_groups=3)
        >>> metric.update(
        ...     preds=torch.tensor([0.9, 0.2, 0.1, 0.7, 0.3, 0.0]),
        ...     target=torch.tensor([1, 0, 1, 1, 0, 0]),
        ...     groups=torch.tensor([0, 0, 2, 2, 2, 2]),
        ... )
        >>> metric.compute()
        tensor(0.7500)
    """

    def __init__(self, metric: Metric, num_groups: int) -> None:
        super().__init__(metric, num_groups)
        if metric.higher_is_better is None:
            raise ContractError(
                f"metric must say whether higher_is_better, {metric} does not: use GroupWise and "
                "choose the worst value yourself"
            )

    def compute(self) -> Tensor:
        """Return the worst value of a group, a scalar."""
        return _extreme(super().compute(), self.total > 0, largest=not self.higher_is_better)


# --- pictures -------------------------------------------------------------------------------------

_REST, _WORST = "#64748b", "#c2410c"


def _group_bars(
    values: Tensor,
    ax: Any = None,
    labels: Sequence[str] | None = None,
    name: str = "accuracy",
    limits: tuple[float | None, float | None] = (None, None),
    higher_is_better: bool | None = True,
) -> Any:
    """Draw a bar for every group, with the worst marked.

    Args:
        values: (num_groups,), NaN where a group has no example.
        ax: The axis of matplotlib to draw on; a new figure by default.
        labels: Names of the groups; their numbers by default.
        name: What the values are.
        limits: The lowest and the highest value there can be.
        higher_is_better: Which value is worst; ``None`` marks none.

    Returns:
        The figure (None when ``ax`` is given) and the axis.

    Raises:
        ContractError: A `ValueError`: ``labels`` are not one a group.
        ModuleNotFoundError: matplotlib is missing.
    """
    values = values.detach().double().cpu()
    names = _labels("labels", labels, len(values))
    figure, ax = _figure(ax, len(values), 6.0)
    worst = None if higher_is_better is None else _worst(values, largest=not higher_is_better)
    bars = ax.barh(range(len(values)), values.nan_to_num(0.0).tolist(), color=_REST)
    ax.set_yticks(range(len(values)), names)
    ax.set_ylim(len(values) - 0.5, -0.5)
    low, high = limits
    ax.set_xlim(low, None if high is None else high + 0.18 * (high - (low or 0.0)))
    for group, value in enumerate(values.tolist()):
        text = "no examples" if math.isnan(value) else f"{value:.3f}"
        if group == worst:
            bars[group].set_color(_WORST)
            text += " (worst)"
        colour = _WORST if group == worst else "black"
        place = 0.0 if math.isnan(value) else max(value, 0.0)
        ax.annotate(
            text, (place, group), (4, 0), textcoords="offset points", va="center", color=colour
        )
    ax.set_xlabel(name)
    ax.set_ylabel("group")
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def _worst(values: Tensor, *, largest: bool = False) -> int | None:
    """The group with the worst value; the first of equals, and none if there is no value."""
    if bool(values.isnan().all()):
        return None
    idle = -math.inf if largest else math.inf
    kept = values.nan_to_num(idle)
    return int(kept.argmax() if largest else kept.argmin())


def _labels(name: str, labels: Sequence[str] | None, number: int) -> list[str]:
    found = [str(one) for one in (range(number) if labels is None else labels)]
    if len(found) != number:
        raise ContractError(f"{name} must be {number} names, got {len(found)}: {found}")
    return found


def _figure(ax: Any, rows: int, width: float) -> tuple[Any, Any]:
    """A new figure as high as its rows need, or none if there is an axis."""
    if ax is not None:
        return None, ax
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot needs matplotlib: pip install matplotlib") from error
    height = min(1.2 + 0.28 * rows, 40.0)
    return pyplot.subplots(figsize=(max(3.0, min(width + 2.0, 16.0)), height), layout="constrained")
