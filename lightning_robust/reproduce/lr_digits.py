"""Large learning rates, Figures 4 and 5, on real digits: Double MNIST of scikit-learn's.

Section 4.1 of Barsbey et al. (ICCV 2025): the class is the left digit, the bias label the brighter
one on the right, and 2.5 % of the training examples are bias-conflicting. The paper takes MNIST and
convolutional networks; here it is scikit-learn's 1,200 digits of 8 by 8 pixels for training and 397
for testing, and the paper's fully connected network of Figure 3, by plain SGD with batches of 100
until all training examples are classified correctly. 2.5 % of 1,200 is 30 examples, three a class,
so that it is also run with 10 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from lightning_robust.data.two_cues import DoubleMNIST
from lightning_robust.models import Classifier
from lightning_robust.reproduce.sweep import (
    LearningRateSweep,
    Run,
    fully_connected,
    reproduced,
)

PAPER = (
    "accuracy, prunability, compressibility, class separation and class selectivity rise with the "
    "learning rate, up to where it diverges"
)
"""What the figures show; they print no number."""

LEARNING_RATES = (0.02, 0.05, 0.1, 0.2, 0.5)
CONFLICTING = (0.025, 0.1)
"""The paper's share of bias-conflicting examples, and one with as many as it takes to learn from:
30 and 120 of 1,200."""

_MAX_EPOCHS = 300
_ATTRIBUTED = 200  # test examples whose integrated gradients are taken, where captum is installed


def make(learning_rate: float) -> Classifier:
    """The network, newly initialised."""
    network = fully_connected(8 * 16, 10)
    return Classifier(network, learning_rate=learning_rate, momentum=0, weight_decay=0)


def train(seed: int = 0, learning_rates: Sequence[float] = LEARNING_RATES) -> list[Run]:
    """Train at each learning rate, with each share of conflicting examples.

    Args:
        seed: Seed of data, initial weights and order.
        learning_rates: Each > 0.

    Raises:
        ContractError: If an argument is refused.
    """
    runs = []
    for share in CONFLICTING:
        sweep = LearningRateSweep(
            make,
            DoubleMNIST(conflicting=share, seed=seed),
            DoubleMNIST("test", seed=seed),
            max_epochs=_MAX_EPOCHS,
            attributed=_ATTRIBUTED if find_spec("captum") else 0,
        )
        name = f"{100 * share:g} % conflicting"
        runs += [replace(one, setting=name) for one in sweep.run(learning_rates, seed)]
    return runs


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train at every learning rate with every seed, print a table, and draw it.

    Args:
        seeds: Seeds of data, initial weights and order.
        output: Folder for ``lr-digits.json`` and ``lr-digits.png``, made if need be; ``None``
            writes nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    return reproduced("lr-digits", train, LEARNING_RATES, PAPER, seeds, output)
