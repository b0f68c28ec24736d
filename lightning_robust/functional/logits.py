"""Logits of models that have not seen an example: calibrating them, shifting by them, keeping them.

Held-out logits are an (n, C) table, a row a training example in dataset order, each row from a
model that was not trained on that example. Memorization-aware training (Pezeshki et al., ICLR
2025, https://arxiv.org/abs/2412.07684) shifts logits by what such a model gets wrong; cross-risk
minimization (Pezeshki et al., ICML 2024, https://arxiv.org/abs/2309.16748) makes such a table.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lightning_robust.contracts import ContractError, check_positive

SMALLEST_PROBABILITY = 1e-6  #: Added to a calibrated probability before its logarithm is taken.

_NUMBERS_AT_A_TIME = 1 << 22  # 32 MiB of float64, whatever n and C
_KEY = "held_out"  # where a file that holds more than the table keeps it


def log_calibration(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """How likely each target is when a held-out model says a class: ``log p(y | y_ho)``.

    The mean over **all** n examples of ``p(y_ho | x_i) 1[y_i = y]``, normalised over y (MAT, Eq. 7;
    the authors' code takes the mean over a batch, which makes an example's shift hang on its
    neighbours). It is summed in float64 and in log-space: a class the model never predicts has a
    row like any other, and nothing is divided by zero.

    Args:
        logits: (n, C) held-out logits, of any floating type and on any device.
        targets: (n,) int64 in [0, C).
        temperature: tau > 0 of the held-out softmax.

    Returns:
        (C, C) float64 on the device of ``logits``: row y_ho, column y. The exponentials of a row
        sum to 1; the column of a class that is no example's target is -inf.

    Raises:
        ContractError: If ``temperature`` is not positive.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> log_calibration(logits, torch.tensor([0, 1, 1])).exp()
        tensor([[0.4683, 0.5317],
                [0.1065, 0.8935]], dtype=torch.float64)
    """
    check_positive("temperature", temperature)
    num_classes = logits.shape[1]
    by_target = logits.new_full((num_classes, num_classes), -torch.inf, dtype=torch.float64)
    for rows in _chunks(logits):  # by_target[y, k] = log of the sum of p(k | x_i) over y_i = y
        log_probs = _log_probs(logits[rows], temperature)
        labels = targets[rows].to(logits.device)
        largest = torch.full_like(by_target, -torch.inf)
        index = labels.unsqueeze(1).expand_as(log_probs)
        largest = largest.scatter_reduce(0, index, log_probs, "amax")
        parts = torch.zeros_like(by_target)
        parts = parts.index_add(0, labels, (log_probs - largest[labels]).exp())
        by_target = torch.logaddexp(by_target, largest + parts.log())
    return by_target.T.log_softmax(1)


def calibrated_shift(
    logits: Tensor,
    calibration: Tensor,
    temperature: float = 1.0,
    dtype: torch.dtype = torch.float32,
    *,
    hard: bool = False,
    strength: float = 1.0,
) -> Tensor:
    """What another model explains of each example: ``log(p(y_ho | x) p(y | y_ho))``.

    Added to the logits it leaves only the rest to be learned. The product is a matrix product, a
    mixture of the rows of the calibration (MAT, Eq. 5 and 6). With ``hard`` it is one row, that of
    the model's guess, as in unsupervised logit adjustment (Tsirigotis et al., NeurIPS 2023,
    https://arxiv.org/abs/2310.18555). A constant is taken off each row so that its largest entry is
    0, which changes no softmax, and makes a shift that prefers no class exactly 0.

    Args:
        logits: (n, C) of the other model.
        calibration: (C, C), from :func:`log_calibration` with the same ``temperature``.
        temperature: tau > 0.
        dtype: Of the result; the arithmetic is float64. ``torch.float16`` is off by at most .004
            per unit of ``strength``, where the shift is near its smallest.
        hard: Take the row of the largest logit instead of the mixture.
        strength: Multiplies the shift.

    Returns:
        (n, C) in ``[strength * log 1e-6, 0]``, on the device of ``logits``.

    Raises:
        ContractError: If ``temperature`` is not positive.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> calibration = log_calibration(logits, torch.tensor([0, 1, 1]))
        >>> calibrated_shift(logits, calibration)
        tensor([[-0.3015,  0.0000],
                [-0.3015,  0.0000],
                [-1.7375,  0.0000]])
    """
    check_positive("temperature", temperature)
    shift = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    rows_of_calibration = calibration.exp()
    for rows in _chunks(logits):
        if hard:
            probs = rows_of_calibration[logits[rows].argmax(1)]
        else:
            probs = _log_probs(logits[rows], temperature).exp() @ rows_of_calibration
        shift[rows] = (strength * log_shift(probs)).to(dtype)
    return shift


def log_shift(probs: Tensor) -> Tensor:
    """The shift ``log(p + 1e-6)``, less a constant a row that makes its largest entry 0.

    Args:
        probs: (B, C) >= 0, what another model explains.

    Example:
        >>> log_shift(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
        tensor([[ 0.0000,  0.0000],
                [-1.0986,  0.0000]])
    """
    log_probs = (probs + SMALLEST_PROBABILITY).log()
    return log_probs - log_probs.amax(1, keepdim=True)


def flip_probability(logits: Tensor) -> Tensor:
    """How readily XRM takes the held-out twin's word for a label: ``(p_max - 1/C) C / (C - 1)``.

    0 for a uniform softmax, so that twins whose heads are zero flip nothing; 1 for a certain one.

    Args:
        logits: (B, C), C >= 2.

    Returns:
        (B,) in [0, 1].

    Example:
        >>> flip_probability(torch.tensor([[0.0, 0.0], [2.0, 0.0], [99.0, 0.0]]))
        tensor([0.0000, 0.7616, 1.0000])
    """
    num_classes = logits.shape[1]
    most = logits.softmax(1).amax(1)
    return ((most - 1 / num_classes) * num_classes / (num_classes - 1)).clamp(0, 1)


def check_held_out(
    logits: Tensor, num_examples: int, num_classes: int, name: str = "held_out"
) -> None:
    """Refuse a table that cannot be another model's logits of a training set.

    Args:
        logits: What should be (n, C), floating and finite.
        num_examples: n.
        num_classes: The smallest C there can be: largest target + 1.
        name: The argument that was given the table.

    Raises:
        ContractError: It is not; the message says what and where.

    Example:
        >>> check_held_out(torch.zeros(3, 2), num_examples=3, num_classes=2)
    """
    if not logits.is_floating_point():
        raise ContractError(
            f"{name} holds {logits.dtype}; give logits, a floating number an example and class"
        )
    if logits.ndim != 2 or len(logits) != num_examples or logits.shape[1] < num_classes:
        raise ContractError(
            f"{name} has shape {tuple(logits.shape)}, and the training set has {num_examples} "
            f"examples of {num_classes} classes; give ({num_examples}, {num_classes}) logits in "
            "dataset order"
        )
    for rows in _chunks(logits):
        finite = logits[rows].isfinite().all(1)
        if not bool(finite.all()):
            raise ContractError(
                f"{name} is not finite for example {rows.start + int((~finite).nonzero()[0])} "
                "(NaN or infinity): that model has diverged; lower its learning rate"
            )


def save_held_out(logits: Tensor, path: str | Path) -> None:
    """Write held-out logits to a file that loads with ``weights_only=True``.

    Args:
        logits: (n, C); ``logits.half()`` halves the file.
        path: The file, overwritten if it is there.
    """
    torch.save(logits.detach().cpu().contiguous(), path)


def load_held_out(path: str | Path, name: str = "held_out") -> Tensor:
    """Read held-out logits from a file, or from the file of a :class:`CrossRisk`.

    The file is mapped into memory: what is not used is not read.

    Args:
        path: What :func:`save_held_out` or ``CrossRisk.save`` wrote, or any ``torch.save`` of a
            tensor, or of a dictionary with a tensor ``"held_out"``.
        name: The argument that was given the path.

    Returns:
        (n, C) on the CPU.

    Raises:
        ContractError: There is no such file, or it holds something else.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_held_out(torch.eye(2), f"{folder}/held_out.pt")
        ...     load_held_out(f"{folder}/held_out.pt").clone()
        tensor([[1., 0.],
                [0., 1.]])
    """
    found = load_plain(path, name)
    table = found.get(_KEY) if isinstance(found, dict) else found
    if not isinstance(table, Tensor):
        raise ContractError(
            f"{name}={str(path)!r} holds a {type(found).__name__}; save a tensor (n, C), or a "
            f"dictionary with a tensor {_KEY!r}"
        )
    return table


def load_plain(path: str | Path, name: str = "held_out") -> object:
    """What ``torch.save`` wrote, tensors and plain values only, on the CPU.

    Args:
        path: The file.
        name: The argument that was given the path.

    Raises:
        ContractError: There is no such file, or it is no such file.
    """
    try:
        return torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise ContractError(
            f"{name}={str(path)!r} cannot be read ({reason}); give a file that torch.save wrote"
        ) from error


def sequence_losses(
    logits: Tensor, labels: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Loss of each sequence of a causal language model, in nats.

    Position t predicts the label of position t + 1; labels of -100 do not count, as in Hugging
    Face's models.

    Args:
        logits: (B, T, V).
        labels: (B, T) int64, token numbers or -100.
        reduction: ``"mean"`` over the tokens that count, or their ``"sum"`` (Eq. 3.3 of S2L).

    Returns:
        (B,); 0 for a sequence without a token that counts.

    Example:
        >>> logits = torch.zeros(1, 3, 4)
        >>> sequence_losses(logits, torch.tensor([[-100, 2, 3]]))
        tensor([1.3863])
    """
    tokens = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        reduction="none",
        ignore_index=-100,
    ).view(len(labels), -1)
    total = tokens.sum(1)
    return total if reduction == "sum" else total / (labels[:, 1:] != -100).sum(1).clamp(min=1)


def _log_probs(logits: Tensor, temperature: float) -> Tensor:
    return (logits.double() / temperature).log_softmax(1)


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Slices over the rows, so that float64 copies stay small."""
    size = max(1, _NUMBERS_AT_A_TIME // logits.shape[1])
    return (slice(start, start + size) for start in range(0, len(logits), size))
