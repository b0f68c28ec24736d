"""Poisons: small changes of training examples that make a model fail on a chosen one.

Objectives are functions of the poisoned inputs, and :func:`craft` minimises one of them within an
l_inf ball around the originals. The attacks are what a defence is to be measured against: gradient
matching and bullseye polytope, feature collision, sleeper agent, label flipping, and a visible
patch.

Every function is a function of its arguments. Models and feature extractors are any callables on
tensors; put them into evaluation mode first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_robust.contracts import (
    ContractError,
    check_at_least,
    check_integer,
    check_positive,
    check_probability,
)

Objective: TypeAlias = Callable[[Tensor], Tensor]
"""From poisoned inputs (m, ...) to a scalar to minimise."""
Extractor: TypeAlias = Callable[[Tensor], Tensor]
"""From inputs (m, ...) to features (m, d)."""


@dataclass(frozen=True, eq=False)
class Poisons:
    """What an attack makes.

    Attributes:
        inputs: (m, ...), the poisoned inputs.
        loss: Objective at ``inputs``.
        first_loss: Objective at the originals.
    """

    inputs: Tensor
    loss: float
    first_loss: float


def craft(
    originals: Tensor,
    objective: Objective,
    *,
    budget: float,
    steps: int = 250,
    step_size: float | None = None,
    restarts: int = 1,
    start: Tensor | None = None,
    low: float = 0.0,
    high: float = 1.0,
    generator: torch.Generator,
) -> Poisons:
    """Minimise an objective within ``budget`` of the originals, by Adam on the gradient's signs.

    After each step the inputs are put back into the ball and the valid range. The step size falls
    to a tenth after 3/8, 5/8 and 7/8 of the steps. Of all inputs seen in all restarts the best are
    returned, and the originals if there are no better.

    Args:
        originals: (m, ...) clean inputs.
        objective: Of inputs of that shape.
        budget: The largest change of any number, in the inputs' units.
        steps: In each restart.
        step_size: At first; ``None`` is a tenth of the budget.
        restarts: How often to start: at a random point of the ball, or ``start`` the first time.
        start: (m, ...), where the first restart begins; it is put into the ball.
        low: Smallest valid number of an input.
        high: Largest.
        generator: Draws where restarts begin.

    Raises:
        ContractError: If an argument is out of range, or an original is not in the valid range.

    References:
        Geiping et al., Witches' Brew, ICLR 2021 (arXiv:2009.02276), Algorithm 1, whose restarts
        and signed Adam these are. Bullseye polytope uses plain Adam; the ball is the same.

    Example:
        >>> clean = torch.tensor([[0.2], [0.5]])
        >>> random = torch.Generator().manual_seed(0)
        >>> found = craft(clean, lambda x: (x - 1).square().sum(), budget=0.3, generator=random)
        >>> found.inputs.flatten()
        tensor([0.5000, 0.8000])
    """
    check_positive("budget", budget)
    check_integer("steps", steps, 1)
    check_integer("restarts", restarts, 1)
    if step_size is not None:
        check_positive("step_size", step_size)
    if not bool(((originals >= low) & (originals <= high)).all()):
        raise ContractError(
            f"originals must be from {low} to {high}, got {float(originals.min())} to "
            f"{float(originals.max())}; give low= and high= of your inputs"
        )
    lowest, highest = (originals - budget).clamp(min=low), (originals + budget).clamp(max=high)
    first_loss = best_loss = float(objective(originals).detach())
    best = originals.clone()
    for restart in range(restarts):
        if start is not None and restart == 0:
            inputs = start.clone()
        else:
            noise = torch.rand(originals.shape, generator=generator, dtype=originals.dtype)
            inputs = lowest + noise.to(originals.device) * (highest - lowest)
        inputs = torch.maximum(torch.minimum(inputs, highest), lowest).requires_grad_()
        optimizer = torch.optim.Adam([inputs], lr=step_size or budget / 10)
        schedule = torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [steps * eighths // 8 for eighths in (3, 5, 7)]
        )
        for step in range(steps + 1):
            loss = objective(inputs)
            if float(loss.detach()) < best_loss:
                best_loss, best = float(loss.detach()), inputs.detach().clone()
            if step < steps:
                [gradient] = torch.autograd.grad(loss, [inputs])
                inputs.grad = gradient.sign()
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    inputs.copy_(torch.maximum(torch.minimum(inputs, highest), lowest))
    return Poisons(best, best_loss, first_loss)


# --- objectives -----------------------------------------------------------------------------------


def gradient_matching(
    models: Sequence[nn.Module],
    labels: Tensor,
    targets: Tensor,
    adversarial_labels: Tensor,
) -> Objective:
    """One minus the cosine between the poisons' gradient and the one that would fool the model.

    Args:
        models: An ensemble, inputs to logits (m, C); the objective is the mean over it.
        labels: (m,) int64, the poisons' own, true labels.
        targets: (t, ...) inputs to be misclassified.
        adversarial_labels: (t,) int64, what they are to be taken for.

    Returns:
        An objective in [0, 2]. Gradients are of the mean cross-entropy, with respect to all
        parameters that require one.

    Raises:
        ContractError: If there is no model.

    References:
        Geiping et al. 2021, Eq. 3; thesis Eq. 4.3.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> target, label = torch.ones(1, 2), torch.tensor([1])
        >>> objective = gradient_matching([model], label, target, label)
        >>> round(abs(float(objective(target).detach())), 3)
        0.0
    """
    if not models:
        raise ContractError("models must hold at least one model, got none")
    ensemble = []
    for model in models:
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = F.cross_entropy(model(targets), adversarial_labels)
        wanted = [g.detach() for g in torch.autograd.grad(loss, parameters)]
        ensemble.append((model, parameters, wanted, _dot(wanted, wanted).sqrt()))

    def objective(inputs: Tensor) -> Tensor:
        total = inputs.new_zeros(())
        for model, parameters, wanted, norm in ensemble:
            loss = F.cross_entropy(model(inputs), labels)
            found = torch.autograd.grad(loss, parameters, create_graph=True)
            cosine = _dot(found, wanted) / (norm * _dot(found, found).sqrt()).clamp(min=1e-12)
            total = total + 1 - cosine
        return total / len(ensemble)

    return objective


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(one * two).sum() for one, two in zip(a, b, strict=True)]).sum()


def bullseye_polytope(extractors: Sequence[Extractor], target: Tensor) -> Objective:
    """Distance of the target's features from the mean of the poisons' features.

    Args:
        extractors: An ensemble, inputs to features (m, d); the objective is the mean over it.
        target: (1, ...), or several views of one target (t, ...), whose mean counts.

    Returns:
        An objective >= 0: half the squared distance, over the squared norm of the target's.

    References:
        Aghakhani et al., Bullseye polytope, EuroS&P 2021 (arXiv:2005.00191), Eq. 4.

    Example:
        >>> objective = bullseye_polytope([lambda x: x], torch.tensor([[1.0, 1.0]]))
        >>> objective(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
        tensor(0.)
    """
    ensemble = _with_features(extractors, target)

    def objective(inputs: Tensor) -> Tensor:
        parts = [
            (extract(inputs).mean(0) - wanted).square().sum() / wanted.square().sum() / 2
            for extract, wanted in ensemble
        ]
        return torch.stack(parts).mean()

    return objective


def feature_collision(
    extractors: Sequence[Extractor], target: Tensor, originals: Tensor, *, similarity: float = 0.1
) -> Objective:
    """Distance of each poison's features from the target's, and of each poison from its original.

    Args:
        extractors: An ensemble, inputs to features (m, d); the objective is the mean over it.
        target: (1, ...), or several views of one target (t, ...), whose mean counts.
        originals: (m, ...), the clean inputs.
        similarity: Beta >= 0, how much the second distance counts.

    Returns:
        An objective >= 0, a mean over poisons of squared distances.

    Raises:
        ContractError: If ``similarity`` is negative.

    References:
        Shafahi et al., Poison frogs, NeurIPS 2018 (arXiv:1804.00792), Eq. 1.

    Example:
        >>> target, clean = torch.tensor([[1.0]]), torch.tensor([[0.0]])
        >>> feature_collision([lambda x: x], target, clean, similarity=0.5)(torch.tensor([[0.5]]))
        tensor(0.3750)
    """
    check_at_least("similarity", similarity, 0)
    ensemble = _with_features(extractors, target)

    def objective(inputs: Tensor) -> Tensor:
        near = [(extract(inputs) - wanted).square().sum(1).mean() for extract, wanted in ensemble]
        own = (inputs - originals).flatten(1).square().sum(1).mean()
        return torch.stack(near).mean() + similarity * own

    return objective


def _with_features(
    extractors: Sequence[Extractor], target: Tensor
) -> list[tuple[Extractor, Tensor]]:
    if not extractors:
        raise ContractError("extractors must hold at least one feature extractor, got none")
    with torch.no_grad():
        return [(extract, extract(target).mean(0)) for extract in extractors]


# --- attacks in several stages, and without optimisation ------------------------------------------


def sleeper_agent(
    models: Sequence[nn.Module],
    originals: Tensor,
    labels: Tensor,
    sources: Tensor,
    target_label: int,
    patch: Callable[[Tensor], Tensor],
    *,
    budget: float,
    retrain: Callable[[Tensor], Sequence[nn.Module]] | None = None,
    retrainings: int = 0,
    steps: int = 250,
    generator: torch.Generator,
) -> Poisons:
    """A hidden trigger: poisons without a patch, for which patched sources are misclassified.

    Gradient matching with the patched sources as targets, all to be taken for ``target_label``.

    Args:
        models: Surrogates, inputs to logits.
        originals: (m, ...) clean inputs of class ``target_label``.
        labels: (m,) int64, their labels.
        sources: (t, ...) training inputs of the class that is to be misclassified.
        target_label: What they are to be taken for.
        patch: Puts the trigger on inputs.
        budget: See :func:`craft`.
        retrain: Trains new surrogates with poisons (m, ...) in the training set.
        retrainings: How often to go on with new surrogates, at even distances; the paper has 4.
        steps: In all.
        generator: See :func:`craft`.

    Raises:
        ContractError: If ``retrainings`` are asked for without ``retrain``, or as :func:`craft`.

    References:
        Souri et al., Sleeper agent, NeurIPS 2022 (arXiv:2106.08970), Algorithm 1.

    Example:
        >>> random = torch.Generator().manual_seed(0)
        >>> clean, labels = torch.rand(3, 4, generator=random), torch.ones(3, dtype=torch.int64)
        >>> found = sleeper_agent(
        ...     [nn.Linear(4, 2)], clean, labels, clean, 1, lambda x: x.clamp(min=0.9),
        ...     budget=0.1, steps=20, generator=random,
        ... )
        >>> found.loss <= found.first_loss
        True
    """
    check_integer("retrainings", retrainings)
    if retrainings and retrain is None:
        raise ContractError(f"retrainings={retrainings} needs retrain: a function of the poisons")
    wanted = torch.full((len(sources),), target_label, device=sources.device)
    found: Poisons | None = None
    first_loss = float("nan")
    for stage in range(retrainings + 1):
        if found is not None and retrain is not None:
            models = retrain(found.inputs)
        found = craft(
            originals,
            gradient_matching(models, labels, patch(sources), wanted),
            budget=budget,
            steps=max(1, steps // (retrainings + 1)),
            start=None if found is None else found.inputs,
            generator=generator,
        )
        first_loss = found.first_loss if stage == 0 else first_loss
    assert found is not None
    return Poisons(found.inputs, found.loss, first_loss)


def flip_labels(
    targets: Tensor, fraction: float, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Give a random share of examples another label, each other label equally likely.

    Args:
        targets: (n,) int64 in [0, num_classes).
        fraction: Share of all examples, rounded to whole ones.
        num_classes: C >= 2.
        generator: Draws which, and what.

    Returns:
        The indices (m,) of what was flipped, and their new labels (m,).

    Raises:
        ContractError: If an argument is out of range.

    Example:
        >>> targets = torch.tensor([0, 1, 0, 1])
        >>> indices, labels = flip_labels(targets, 0.5, 2, torch.Generator().manual_seed(0))
        >>> len(indices), bool((labels == 1 - targets[indices]).all())
        (2, True)
    """
    check_probability("fraction", fraction)
    check_integer("num_classes", num_classes, 2)
    count = round(fraction * len(targets))
    indices = torch.randperm(len(targets), generator=generator)[:count].sort().values
    shift = torch.randint(1, num_classes, (count,), generator=generator)
    return indices, (targets[indices] + shift) % num_classes


def stamp(images: Tensor, patch: Tensor, row: int = -1, column: int = -1) -> Tensor:
    """Put a patch on images, the trigger of a backdoor.

    Args:
        images: (..., H, W).
        patch: (..., h, w), broadcast to the images.
        row: Of the patch's upper edge; -1 puts it at the lower edge of the image.
        column: Of the left edge; -1 puts it at the right edge.

    Returns:
        New images.

    Raises:
        ContractError: If the patch is not inside the image.

    Example:
        >>> stamp(torch.zeros(1, 3, 3), torch.ones(1, 2))
        tensor([[[0., 0., 0.],
                 [0., 0., 0.],
                 [0., 1., 1.]]])
    """
    (height, width), (h, w) = images.shape[-2:], patch.shape[-2:]
    row = height - h if row == -1 else row
    column = width - w if column == -1 else column
    if not (0 <= row <= height - h and 0 <= column <= width - w):
        raise ContractError(
            f"patch of {h} x {w} does not fit at row {row}, column {column} of images of "
            f"{height} x {width}; move it or make it smaller"
        )
    stamped = images.clone()
    stamped[..., row : row + h, column : column + w] = patch
    return stamped


def highest_loss_of_class(logits: Tensor, targets: Tensor, label: int, count: int) -> Tensor:
    """The examples of a class with the highest loss: good originals to poison.

    Args:
        logits: (n, C).
        targets: (n,) int64.
        label: The class.
        count: How many; if the class has fewer, all.

    Returns:
        (m,) int64, indices, the highest loss first.

    Example:
        >>> logits = torch.tensor([[0.0, 3.0], [2.0, 0.0], [0.0, 1.0]])
        >>> highest_loss_of_class(logits, torch.tensor([1, 0, 1]), label=1, count=1)
        tensor([2])
    """
    losses = F.cross_entropy(logits, targets, reduction="none")
    members = (targets == label).nonzero().squeeze(1)
    return members[losses[members].argsort(descending=True, stable=True)[:count]]
