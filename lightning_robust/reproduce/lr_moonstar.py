"""Large learning rates, moons and stars: shape against place, as in the supplement.

Section 4.1 of Barsbey et al. (ICCV 2025), whose figure is in a supplement that was not at hand:
moons and stars of which 10 % in training, and half in testing, are not in the quadrants of their
kind. 2,000 images of 24 by 24 pixels, the paper's fully connected network of Figure 3, plain SGD
with batches of 100 and a constant learning rate until all training examples are classified
correctly.

**It reproduces in part.** There is little to gain, since at every rate the network tells shapes
apart wherever they are. Of the rates .02, .05, .1, .2, .5 and 1 accuracy is 97.4, 97.3, 97.1, 97.3,
97.9 and 97.8 % (means of seeds 0 to 2, standard deviation .6 to 1.1): flat up to .2, and higher at
.5 on each seed, by .3 to .9 points over .02. Class separation is .88 to .89 up to .2, then .92,
class selectivity .58 to .59, then .64, and bias selectivity .13, then .11. Prunability does not
change, 8.9 of 9, nor does compressibility, .48 to .49. At 1 all but accuracy scatters: class
separation is .56, .95 and .90.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_robust.data.two_cues import MoonStar
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

LEARNING_RATES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_MAX_EPOCHS = 300


def make(learning_rate: float) -> Classifier:
    """The network, newly initialised."""
    network = fully_connected(24 * 24, 2)
    return Classifier(network, learning_rate=learning_rate, momentum=0, weight_decay=0)


def train(seed: int = 0, learning_rates: Sequence[float] = LEARNING_RATES) -> list[Run]:
    """Train at each learning rate.

    Args:
        seed: Seed of data, initial weights and order.
        learning_rates: Each > 0.

    Raises:
        ContractError: If an argument is refused.
    """
    sweep = LearningRateSweep(
        make, MoonStar(seed=seed), MoonStar("test", seed=seed), max_epochs=_MAX_EPOCHS
    )
    return sweep.run(learning_rates, seed)


def run(seeds: Sequence[int] = (0, 1, 2), *, output: Path | None = None) -> list[Run]:
    """Train at every learning rate with every seed, print a table, and draw it.

    Args:
        seeds: Seeds of data, initial weights and order.
        output: Folder for ``lr-moonstar.json`` and ``lr-moonstar.png``, made if need be; ``None``
            writes nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    return reproduced("lr-moonstar", train, LEARNING_RATES, PAPER, seeds, output)
