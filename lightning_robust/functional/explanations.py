"""What an attribute is worth to a model, and whether a model looks at the class.

Thesis of Yu Yang (UCLA, 2024), chapter 7, Eq. 7.7 to 7.9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_robust.contracts import ContractError, check_integer


def accuracy_discrepancy(
    correct: Tensor, targets: Tensor, attributes: Tensor, num_classes: int, *, min_count: int = 1
) -> Tensor:
    """Accuracy with an attribute minus accuracy without it, in each class (Eq. 7.7).

    Args:
        correct: (n,) bool, which examples are classified correctly.
        targets: (n,) int64 in [0, C).
        attributes: (n, A) bool, which attributes each image shows.
        num_classes: C.
        min_count: How many examples there must be of a class with, and without, the attribute.

    Returns:
        (C, A) float64, NaN where there are fewer examples than ``min_count``.

    Raises:
        ContractError: If the shapes do not fit or ``min_count`` is less than 1.

    Example:
        >>> correct = torch.tensor([True, True, True, False])
        >>> with_water = torch.tensor([[True], [True], [False], [False]])
        >>> accuracy_discrepancy(correct, torch.zeros(4).long(), with_water, num_classes=1)
        tensor([[0.5000]], dtype=torch.float64)
    """
    check_integer("min_count", min_count, 1)
    if attributes.ndim != 2 or attributes.dtype != torch.bool:
        raise ContractError(
            f"attributes must be bool (n, A), a column an attribute, got "
            f"{tuple(attributes.shape)} of {attributes.dtype}"
        )
    if not len(correct) == len(targets) == len(attributes):
        raise ContractError(
            f"correct, targets and attributes must have a row an example, got {len(correct)}, "
            f"{len(targets)} and {len(attributes)}"
        )
    members = torch.nn.functional.one_hot(targets, num_classes).T.double()
    hits = members * correct.double()
    accuracies = []
    for shown in (attributes.double(), (~attributes).double()):
        counts = members @ shown
        accuracy = (hits @ shown) / counts
        accuracies.append(accuracy.masked_fill(counts < min_count, torch.nan))
    return accuracies[0] - accuracies[1]


@dataclass(frozen=True)
class Discrepancy:
    """How much worse a class is recognised without an attribute.

    Args:
        label: The class.
        attribute: The attribute.
        discrepancy: Accuracy with it minus accuracy without it.
        with_attribute: Number of the class's examples that show it.
        without_attribute: Number of those that do not.
        confused_with: What most of its misclassified examples without it are taken for, or "".
        missed: Indices of these, ascending, as :func:`~lightning_robust.data.draw_examples` takes
            them for a picture.
    """

    label: str
    attribute: str
    discrepancy: float
    with_attribute: int
    without_attribute: int
    confused_with: str
    missed: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class DiscrepancyReport:
    """Attributes of classes, the most harmful first; print it for a table.

    Whether an attribute is part of the class (the yellow of a taxi) or spurious is for a person to
    say.

    Args:
        ranking: From the largest discrepancy to the smallest.
    """

    ranking: tuple[Discrepancy, ...]

    def __str__(self) -> str:
        """The ranking as a table."""
        rows = [("class", "attribute", "confused with", "discrepancy", "with", "without")]
        rows += [
            (
                one.label,
                one.attribute,
                one.confused_with,
                f"{100 * one.discrepancy:.1f}",
                str(one.with_attribute),
                str(one.without_attribute),
            )
            for one in self.ranking
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


def rank_attributes(
    predictions: Tensor,
    targets: Tensor,
    attributes: Tensor,
    *,
    class_names: Sequence[str],
    attribute_names: Sequence[str],
    min_count: int = 1,
) -> DiscrepancyReport:
    """Rank what a model may rely on, of all classes and attributes, by accuracy discrepancy.

    Args:
        predictions: (n,) int64, the predicted classes.
        targets: (n,) int64.
        attributes: (n, A) bool, of annotations or an open-vocabulary detector.
        class_names: C names.
        attribute_names: A names.
        min_count: As in :func:`accuracy_discrepancy`; pairs with fewer examples are left out.

    Returns:
        The ranking.

    Raises:
        ContractError: If the shapes do not fit.

    Example:
        >>> predictions = torch.tensor([1, 1, 1, 0, 0, 0])
        >>> targets = torch.tensor([1, 1, 1, 1, 0, 0])
        >>> water = torch.tensor([[1], [1], [0], [0], [1], [0]]).bool()
        >>> print(
        ...     rank_attributes(
        ...         predictions, targets, water,
        ...         class_names=["landbird", "waterbird"], attribute_names=["water"],
        ...     )
        ... )
        class      attribute  confused with  discrepancy  with  without
        waterbird  water      landbird       50.0         2     2
        landbird   water                     0.0          1     1
    """
    if attributes.shape[1:] != (len(attribute_names),):
        raise ContractError(
            f"attribute_names must name the {attributes.shape[-1]} columns of attributes, got "
            f"{len(attribute_names)} names"
        )
    num_classes = len(class_names)
    if predictions.shape != targets.shape or predictions.is_floating_point():
        raise ContractError(
            f"predictions must be predicted classes, of the shape {tuple(targets.shape)} of "
            f"targets, got {tuple(predictions.shape)} of {predictions.dtype}; of logits take "
            "argmax(1)"
        )
    table = accuracy_discrepancy(
        predictions == targets, targets, attributes, num_classes, min_count=min_count
    )
    ranking = []
    for label, attribute in (~table.isnan()).nonzero().tolist():
        of_class, shown = targets == label, attributes[:, attribute]
        missed = (of_class & ~shown & (predictions != label)).nonzero().flatten()
        confused = class_names[int(predictions[missed].mode().values)] if len(missed) else ""
        ranking.append(
            Discrepancy(
                label=class_names[label],
                attribute=attribute_names[attribute],
                discrepancy=float(table[label, attribute]),
                with_attribute=int((of_class & shown).sum()),
                without_attribute=int((of_class & ~shown).sum()),
                confused_with=confused,
                missed=tuple(missed.tolist()),
            )
        )
    return DiscrepancyReport(tuple(sorted(ranking, key=lambda one: -one.discrepancy)))


def detected(detector: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """The attribute table of images, by a detector, such as an open-vocabulary one.

    Args:
        detector: Maps images (b, ...) to which of A attributes each of them shows, bool (b, A).
        batches: Images, in dataset order.

    Returns:
        (n, A) bool, on the CPU.

    Raises:
        ContractError: The detector returns something else.

    Example:
        >>> images = torch.tensor([[0.9, 0.1], [0.2, 0.1]])
        >>> detected(lambda batch: batch > 0.5, [images[:1], images[1:]])
        tensor([[ True, False],
                [False, False]])
    """
    rows = []
    for images in batches:
        found = detector(images)
        if found.dtype != torch.bool or found.ndim != 2 or len(found) != len(images):
            raise ContractError(
                f"detector must return bool (b, A), a row an image, got {tuple(found.shape)} of "
                f"{found.dtype} for {len(images)} images: compare its scores with a threshold"
            )
        rows.append(found.cpu())
    return torch.cat(rows)


def soft_iou(maps: Tensor, boxes: Tensor) -> Tensor:
    """Overlap of explanation maps and boxes without a threshold (Eq. 7.8).

    The sum over pixels of the smaller of the two, divided by that of the larger.

    Args:
        maps: (..., h, w) in [0, 1].
        boxes: (..., h, w) in [0, 1] or bool: 1 inside the bounding box. Broadcasts with ``maps``.

    Returns:
        (...), in [0, 1]; 0 where both are empty.

    Raises:
        ContractError: If height and width differ, or values are outside [0, 1].

    Example:
        >>> soft_iou(torch.tensor([[1.0, 0.5], [0.0, 0.5]]), torch.tensor([[1, 1], [0, 0]]))
        tensor(0.6000)
    """
    if maps.ndim < 2 or boxes.ndim < 2 or maps.shape[-2:] != boxes.shape[-2:]:
        raise ContractError(
            f"maps and boxes must both end in (h, w), got {tuple(maps.shape)} and "
            f"{tuple(boxes.shape)}: resize the maps to the images"
        )
    boxes = boxes.to(maps.dtype)
    for name, values in {"maps": maps, "boxes": boxes}.items():
        if values.numel() and not bool(((values >= 0) & (values <= 1)).all()):
            raise ContractError(
                f"{name} must be in [0, 1], got values from {float(values.min()):g} to "
                f"{float(values.max()):g}: of a map take the positive part and divide it by its "
                "largest value, and a box is 1 inside"
            )
    union = torch.maximum(maps, boxes).sum((-2, -1))
    return torch.minimum(maps, boxes).sum((-2, -1)) / union.where(union > 0, 1)


def adjusted_iou(maps: Tensor, boxes: Tensor, targets: Tensor) -> Tensor:
    """Whether it is the true class that is explained by what is in the box (Eq. 7.9).

    ``IoU_y / (IoU_y + max IoU_y')``, y' being the class other than y whose map overlaps the most
    with the box of y.

    Args:
        maps: (n, C, h, w) in [0, 1], C >= 2: the explanation of every class.
        boxes: (n, h, w): the bounding box of the true class.
        targets: (n,) int64.

    Returns:
        (n,) in [0, 1]; 1/2 where no class's map touches the box.

    Raises:
        ContractError: If the shapes do not fit.

    Example:
        >>> maps = torch.tensor([[[[1.0, 0.0]], [[0.5, 1.0]]]])
        >>> adjusted_iou(maps, torch.tensor([[[1, 0]]]), torch.tensor([0]))  # 1 / (1 + 1/4)
        tensor([0.8000])
    """
    if (
        maps.ndim != 4
        or maps.shape[1] < 2
        or boxes.ndim != 3
        or not len(maps) == len(boxes) == len(targets)
    ):
        raise ContractError(
            "maps must be (n, C, h, w) of two classes or more, boxes (n, h, w) and targets (n,), "
            f"got {tuple(maps.shape)}, {tuple(boxes.shape)} and {tuple(targets.shape)}"
        )
    overlaps = soft_iou(maps, boxes.unsqueeze(1))
    own = overlaps.gather(1, targets.unsqueeze(1)).squeeze(1)
    rival = overlaps.scatter(1, targets.unsqueeze(1), -1).amax(1)
    total = own + rival
    return torch.where(total > 0, own / total.where(total > 0, 1), 0.5)
