"""Contrastive losses between groups, most of them for fine-tuning vision-language models.

From chapter 7 of the thesis of Yu Yang (UCLA, 2024), after Yang et al., Mitigating Spurious
Correlations in Multi-modal Models during Fine-tuning (ICML 2023, https://arxiv.org/abs/2304.03916).
No code was published. Where the text leaves a choice:

- The cross-group similarity is printed as the expectation of a log-probability. Minimising that
  would drive positives apart, so a loss is its negative.
- An example is in its own group as printed, and always most similar to itself. It takes no part
  here, neither above nor below the fraction, as in supervised contrastive learning.
- The mean is over the positives of an anchor first, then over the anchors. An anchor whose batch
  holds no positive is left out; if that leaves none, the loss is 0.
- Both halves of the CLIP loss (Eq. 7.1), whose indices do not fit the expectation as printed, are
  over the pair (I_i, T_i): against all texts, and against all images.
- The positives of the spurious losses are described as those of the same class *and* attribute,
  and written as those of the same attribute: ``same`` chooses, and the description is the default.

Embeddings are taken as they are: normalise them first to have cosines.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from lightning_robust.contracts import ContractError, check_choice, check_positive

Same: TypeAlias = Literal["group", "attribute"]


def cross_group_loss(
    anchors: Tensor,
    others: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.07,
) -> Tensor:
    """Negated cross-group similarity: low where anchors are near positives, far from negatives.

    For anchor i, ``log(sum of e^(<a_i, b_k> / tau) over positives and negatives k)`` minus the mean
    of ``<a_i, b_p> / tau`` over its positives p; then the mean over anchors that have a positive.

    Args:
        anchors: a (n, d).
        others: b (m, d).
        positives: (n, m) bool.
        negatives: (n, m) bool, disjoint from ``positives``. What is in neither, as an anchor itself
            should be, takes no part.
        temperature: tau > 0.

    Returns:
        A scalar, at least float32; 0, with zero gradients, if no anchor has a positive.

    Raises:
        ContractError: If the shapes do not fit or ``temperature`` is not positive.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
        >>> positives = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
        >>> negatives = torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 0]]).bool()
        >>> cross_group_loss(points, points, positives, negatives, temperature=1.0)  # log(1 + e^-2)
        tensor(0.1269)
    """
    similarities = _similarities(anchors, others, temperature)
    for name, mask in {"positives": positives, "negatives": negatives}.items():
        if mask.shape != similarities.shape or mask.dtype != torch.bool:
            raise ContractError(
                f"{name} must be bool {tuple(similarities.shape)}, a row an anchor and a column "
                f"another, got {tuple(mask.shape)} of {mask.dtype}"
            )
    counts = positives.sum(1)
    counted = counts > 0
    # Rows that do not count keep every column: the gradient of an empty logsumexp is NaN.
    taking_part = positives | negatives | ~counted.unsqueeze(1)
    totals = similarities.masked_fill(~taking_part, -torch.inf).logsumexp(1)
    near = torch.where(positives, similarities, 0).sum(1) / counts.clamp(min=1)
    return torch.where(counted, totals - near, 0).sum() / counted.sum().clamp(min=1)


def clip_loss(images: Tensor, texts: Tensor, *, temperature: float = 0.07) -> Tensor:
    """The loss that CLIP is trained by (Eq. 7.1): which text is of this image, and the reverse.

    As in the paper, another image's caption is a negative even if it is of the same class.

    Args:
        images: (n, d).
        texts: (n, d), row i the caption of image i.
        temperature: tau > 0.

    Returns:
        A scalar, at least float32.

    Raises:
        ContractError: If the shapes do not fit or ``temperature`` is not positive.

    Example:
        >>> clip_loss(torch.eye(2), torch.eye(2), temperature=1.0)  # log(1 + e^-1)
        tensor(0.3133)
    """
    if images.shape != texts.shape:
        raise ContractError(
            f"texts must have the shape of images, {tuple(images.shape)}, one caption an image, "
            f"got {tuple(texts.shape)}"
        )
    similarities = _similarities(images, texts, temperature)
    own = torch.arange(len(images), device=images.device)
    of_images = functional.cross_entropy(similarities, own)
    return (of_images + functional.cross_entropy(similarities.T, own)) / 2


def class_loss(
    embeddings: Tensor,
    classes: Tensor,
    *,
    templates: Tensor | None = None,
    temperature: float = 0.07,
) -> Tensor:
    """Pulls a class together and pushes classes apart: L_vc of images, L_lc of texts.

    Eq. 7.2 for the images of a batch; Eq. 7.3, with ``templates``, for texts.

    Args:
        embeddings: (n, d), of one modality.
        classes: (n,) int64.
        templates: (n,) int64: the template behind each text. Texts of the same class and template
            are the same text, and no positives of each other. ``None`` for images.
        temperature: tau > 0.

    Returns:
        A scalar; see :func:`cross_group_loss`.

    Raises:
        ContractError: If the shapes do not fit or ``temperature`` is not positive.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
        >>> class_loss(points, torch.tensor([0, 0, 1]), temperature=1.0)
        tensor(0.1269)
    """
    alike = _equal("classes", classes, embeddings)
    return _apart(embeddings, alike, _identical(alike, templates, embeddings), temperature)


def spurious_loss(
    embeddings: Tensor,
    classes: Tensor,
    attributes: Tensor,
    *,
    templates: Tensor | None = None,
    same: Same = "group",
    temperature: float = 0.07,
) -> Tensor:
    """Pulls a group together and pushes groups apart: L_vs of images, L_ls of texts.

    Eq. 7.4 for the images of a batch; Eq. 7.5, with ``templates``, for texts that name both class
    and attribute.

    Args:
        embeddings: (n, d), of one modality.
        classes: (n,) int64.
        attributes: (n,) int64 or bool: the value of the spurious attribute, absence being one.
        templates: (n,) int64: the template behind each text, ``None`` for images.
        same: What positives share: ``"group"`` is class and attribute, the paper's description;
            ``"attribute"`` the attribute alone, its equation.
        temperature: tau > 0.

    Returns:
        A scalar; see :func:`cross_group_loss`.

    Raises:
        ContractError: If the shapes do not fit or an argument is refused.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
        >>> classes, attributes = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])
        >>> spurious_loss(points, classes, attributes, temperature=1.0)  # every group has one
        tensor(0.)
        >>> spurious_loss(points, classes, attributes, same="attribute", temperature=1.0)
        tensor(0.1269)
    """
    check_choice("same", same, ("group", "attribute"))
    alike = _equal("attributes", attributes, embeddings)
    same_group = alike & _equal("classes", classes, embeddings)
    identical = _identical(same_group, templates, embeddings)
    return _apart(embeddings, same_group if same == "group" else alike, identical, temperature)


def prediction_contrast(
    embeddings: Tensor, classes: Tensor, predictions: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Pulls a class together across what another model predicted, and classes apart within that.

    Positives are of the same class and another prediction, negatives of another class and the same
    prediction: correct-n-contrast (Zhang et al., ICML 2022), Section 4, whose supervised
    contrastive loss is :func:`cross_group_loss`.

    Args:
        embeddings: (n, d).
        classes: (n,) int64.
        predictions: (n,) int64, of a model that relies on a spurious feature.
        temperature: tau > 0.

    Returns:
        A scalar; see :func:`cross_group_loss`.

    Raises:
        ContractError: If the shapes do not fit or ``temperature`` is not positive.

    Example:
        >>> points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
        >>> classes, predictions = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
        >>> prediction_contrast(points, classes, predictions, temperature=1.0)
        tensor(0.0635)
    """
    alike = _equal("classes", classes, embeddings)
    predicted_alike = _equal("predictions", predictions, embeddings)
    return cross_group_loss(
        embeddings,
        embeddings,
        alike & ~predicted_alike,
        ~alike & predicted_alike,
        temperature=temperature,
    )


def _apart(embeddings: Tensor, alike: Tensor, identical: Tensor, temperature: float) -> Tensor:
    """The loss whose positives are ``alike`` but not ``identical``, and negatives the others."""
    return cross_group_loss(
        embeddings, embeddings, alike & ~identical, ~alike, temperature=temperature
    )


def _identical(alike: Tensor, templates: Tensor | None, embeddings: Tensor) -> Tensor:
    """(n, n) bool: an example and itself, and texts that say the same in the same template."""
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    if templates is None:
        return itself
    return itself | alike & _equal("templates", templates, embeddings)


def _equal(name: str, ids: Tensor, embeddings: Tensor) -> Tensor:
    """(n, n) bool, whose ids are the same."""
    if ids.shape != embeddings.shape[:1]:
        raise ContractError(
            f"{name} must have shape ({len(embeddings)},), one an embedding, got {tuple(ids.shape)}"
        )
    return ids.unsqueeze(1) == ids


def _similarities(anchors: Tensor, others: Tensor, temperature: float) -> Tensor:
    check_positive("temperature", temperature)
    if anchors.ndim != 2 or others.ndim != 2 or anchors.shape[1] != others.shape[1]:
        raise ContractError(
            f"embeddings must be (n, d) and (m, d), got {tuple(anchors.shape)} and "
            f"{tuple(others.shape)}"
        )
    with torch.autocast(anchors.device.type, enabled=False):
        wide = torch.promote_types(anchors.dtype, torch.float32)
        return anchors.to(wide) @ others.to(wide).T / temperature
