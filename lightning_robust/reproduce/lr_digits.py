"""Large learning rates, Figures 4 and 5, on real digits: Double MNIST of scikit-learn's.

Section 4.1 of Barsbey et al. (ICCV 2025): the class is the left digit, the bias label the brighter
one on the right, and 2.5 % of the training examples are bias-conflicting. The paper takes MNIST;
here it is scikit-learn's digits of 8 by 8 pixels, 1,200 for training and 397 for testing, and the
paper's fully connected network of Figure 3, by plain SGD with batches of 100 and a constant
learning rate until all training examples are classified correctly. 2.5 % of 1,200 is 30 examples,
three a class, so that it is also run with 10 %.

**It does not reproduce.** Among the rates that fit the training set accuracy does not rise with the
rate: at .05, .1, .2 and .5 seeds 0 to 2 gave 39.5, 38.2, 33.7 and 27.0 % with 2.5 % conflicting,
and 71.9, 73.3, 72.0 and 66.7 % with 10 %, where one seed at .5 did not fit. (.02 does not fit
within 300 epochs.) With 2.5 % compressibility rises from .32 to .45 and class selectivity from .22
to .30, but bias selectivity from .22 to .47; with 10 %, up to .2, compressibility from .33 to .37,
class selectivity from .30 to .38, bias selectivity from .15 to .21. Class separation falls;
prunability rises up to .2, by about its standard deviation or less. A convolutional network, tried
with one seed and 2.5 %, gave 40.6, 37.0 and 34.0 % at .05, .1 and .2, and died at .5. Which of the
differences matters, the size of the data or of the images, was not found out.
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
