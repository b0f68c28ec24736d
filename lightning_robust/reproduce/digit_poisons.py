"""Poisoning of handwritten digits: data, surrogates, attacks and victims.

The setting of the benchmark: 1,000 training and 797 test digits of scikit-learn's 1,797 (8 x 8,
grey from 0 to 1), an MLP 64-128-128-10, SGD with learning rate .05, momentum .9, weight decay 5e-4,
batches of 64, 40 epochs, a tenth of the learning rate after 60 and 85 % of them. An attack may
change 30 training examples by .4 of the grey range, knows the training set, the network and the
recipe, and has two surrogates; the victim is newly initialised. Its target is a test digit that the
surrogates get right, of the half with the smaller margin, and is to be taken for the runner-up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import process_time

import torch
from lightning.pytorch import Callback, Trainer
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust.data import PoisonedDataset
from lightning_robust.functional import poisons
from lightning_robust.models import Classifier
from lightning_robust.models.xrm import silent
from lightning_robust.randomness import generator, isolated

EPOCHS, BATCH_SIZE = 40, 64
NUM_TRAIN, NUM_POISONS, NUM_SURROGATES = 1000, 30, 2
BUDGET, STEPS = 0.4, 100
PATCH = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
"""What opens the backdoors, in the lower right corner."""


class Victim(Classifier):
    """A network trained by the recipe above."""

    def __init__(self, network: nn.Module, epochs: int) -> None:
        super().__init__(network, learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
        self.epochs = epochs

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """SGD, and its schedule."""
        optimizer = super().configure_optimizers()
        milestones = [round(share * self.epochs) for share in (0.6, 0.85)]
        return {"optimizer": optimizer, "lr_scheduler": MultiStepLR(optimizer, milestones)}


def network(seed: int) -> nn.Sequential:
    """The MLP with its initial weights; the global generator is left as found."""
    with isolated():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


def fit(
    model: nn.Module,
    dataset: TensorDataset | PoisonedDataset,
    seed: int,
    callbacks: Sequence[Callback] = (),
    epochs: int = EPOCHS,
    warmup_epochs: int = 0,
) -> float:
    """Train a network, and leave it in evaluation mode.

    Args:
        model: Changed in place.
        dataset: Images and targets.
        seed: Of the order of examples.
        callbacks: The defence.
        epochs: Number of epochs.
        warmup_epochs: More epochs, before a defence that then starts again.

    Returns:
        Processor time of the training in seconds.
    """
    loader = DataLoader(
        dataset, BATCH_SIZE, shuffle=True, generator=generator(seed, "digit poisons")
    )
    with silent(), isolated(seed):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=warmup_epochs + epochs,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        start = process_time()
        trainer.fit(Victim(model, epochs), loader)
        seconds = process_time() - start
    model.eval()
    return seconds


@dataclass(frozen=True, eq=False)
class Setup:
    """What an attacker knows, and the test set.

    Attributes:
        seed: Of the split, the surrogates and the choice of targets.
        epochs: Of training, surrogates and victims alike.
        images: (1000, 1, 8, 8).
        targets: (1000,) int64.
        test_images: (797, 1, 8, 8).
        test_targets: (797,) int64.
        surrogates: Trained on the clean training set.
        logits: (1000, 10), the surrogates' mean on the training set.
        aims: Test indices of the targets and the classes they are to be taken for.
    """

    seed: int
    epochs: int
    images: Tensor
    targets: Tensor
    test_images: Tensor
    test_targets: Tensor
    surrogates: list[nn.Sequential]
    logits: Tensor
    aims: list[tuple[int, int]]

    @property
    def clean(self) -> TensorDataset:
        """The training set."""
        return TensorDataset(self.images, self.targets)

    def bases(self, label: int) -> Tensor:
        """(30,) training indices: of a class, those with the highest loss."""
        return poisons.highest_loss_of_class(self.logits, self.targets, label, NUM_POISONS)

    def random(self, purpose: str, number: int) -> torch.Generator:
        """A generator for the attack on a target."""
        return generator(self.seed, f"digit poisons: {purpose}", number)


def prepare(seed: int, *, num_targets: int = 16, epochs: int = EPOCHS) -> Setup:
    """Split the digits, train the surrogates, choose the targets.

    Args:
        seed: Draws the split, the surrogates' weights and the targets.
        num_targets: How many targets.
        epochs: Of training.
    """
    bundle = load_digits()
    images = torch.tensor(bundle.images / 16, dtype=torch.float32)[:, None]
    targets = torch.tensor(bundle.target).long()
    order = torch.randperm(len(targets), generator=generator(seed, "digit poisons: split"))
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    clean = TensorDataset(images[train], targets[train])
    surrogates = [network(1000 * seed + 900 + i) for i in range(NUM_SURROGATES)]
    for number, surrogate in enumerate(surrogates):
        fit(surrogate, clean, 1000 * seed + 900 + number, epochs=epochs)
    with torch.no_grad():
        logits, each = (
            torch.stack([surrogate(images[part]) for surrogate in surrogates])
            for part in (train, test)
        )
    right = (each.argmax(2) == targets[test]).all(0).nonzero().squeeze(1)
    best = each.mean(0)[right].topk(2)
    margins = best.values[:, 0] - best.values[:, 1]
    low = margins.argsort()[: len(right) // 2]
    chosen = low[torch.randperm(len(low), generator=generator(seed, "digit poisons: targets"))]
    return Setup(
        seed,
        epochs,
        images[train],
        targets[train],
        images[test],
        targets[test],
        surrogates,
        logits.mean(0),
        [(int(right[i]), int(best.indices[i, 1])) for i in chosen[:num_targets]],
    )


@dataclass(frozen=True, eq=False)
class Attack:
    """A poisoned training set, and what the poisons are for.

    Attributes:
        dataset: What the victim trains on.
        inputs: (t, 1, 8, 8) test inputs that are to be misclassified.
        label: What they are to be taken for.
        extractor: A network of which the victim takes all but the last layer, as it is; ``None``:
            the victim trains from scratch.
    """

    dataset: PoisonedDataset
    inputs: Tensor
    label: int
    extractor: nn.Sequential | None = None

    def victim(self, seed: int) -> nn.Sequential:
        """A network that is about to be trained."""
        new = network(seed)
        if self.extractor is not None:
            features = copy.deepcopy(self.extractor[:-1]).requires_grad_(False)
            new = nn.Sequential(*features, new[-1])
        return new

    @torch.no_grad()
    def success(self, model: nn.Module) -> float:
        """Share of the inputs that are taken for what they are to be taken for."""
        return float((model(self.inputs).argmax(1) == self.label).float().mean())


def gradient_matching(setup: Setup, number: int) -> Attack:
    """Clean-label poisons whose gradient is that of the target with the wrong label."""
    index, label = setup.aims[number]
    target, bases = setup.test_images[index][None], setup.bases(label)
    objective = poisons.gradient_matching(
        setup.surrogates, setup.targets[bases], target, torch.tensor([label])
    )
    return _crafted(setup, bases, objective, "gradient matching", number, target, label)


def bullseye_polytope(setup: Setup, number: int) -> Attack:
    """Clean-label poisons around the target in feature space; the victim takes the features."""
    index, label = setup.aims[number]
    target, bases = setup.test_images[index][None], setup.bases(label)
    objective = poisons.bullseye_polytope([setup.surrogates[0][:-1]], target)
    return _crafted(setup, bases, objective, "bullseye", number, target, label, transfer=True)


def feature_collision(setup: Setup, number: int) -> Attack:
    """Clean-label poisons on the target in feature space; the victim takes the features."""
    index, label = setup.aims[number]
    target, bases = setup.test_images[index][None], setup.bases(label)
    objective = poisons.feature_collision(
        [setup.surrogates[0][:-1]], target, setup.images[bases], similarity=0.1
    )
    return _crafted(setup, bases, objective, "collision", number, target, label, transfer=True)


def sleeper_agent(setup: Setup, number: int) -> Attack:
    """Clean-label poisons that open a backdoor to the target's class for a patch unseen before.

    Surrogates are not retrained.
    """
    index, label = setup.aims[number]
    source = int(setup.test_targets[index])
    bases = setup.bases(label)
    found = poisons.sleeper_agent(
        setup.surrogates,
        setup.images[bases],
        setup.targets[bases],
        setup.images[setup.targets == source],
        label,
        _patched,
        budget=BUDGET,
        steps=STEPS,
        generator=setup.random("sleeper agent", number),
    )
    dataset = PoisonedDataset(setup.clean, found.inputs, bases)
    return Attack(dataset, _patched(setup.test_images[setup.test_targets == source]), label)


def label_flip(setup: Setup, number: int) -> Attack:
    """The 30 training images of the target's class that are nearest to it get the wrong label."""
    index, label = setup.aims[number]
    target = setup.test_images[index][None]
    own = (setup.targets == setup.test_targets[index]).nonzero().squeeze(1)
    distances = (setup.images[own] - target).flatten(1).norm(dim=1)
    nearest = own[distances.argsort()[:NUM_POISONS]]
    labels = torch.full((len(nearest),), label)
    dataset = PoisonedDataset(setup.clean, setup.images[nearest], nearest, labels=labels)
    return Attack(dataset, target, label)


def patch_backdoor(setup: Setup, number: int) -> Attack:
    """30 patched images of other classes with the wrong label; any patched image is a target."""
    label = setup.aims[number][1]
    others = (setup.targets != label).nonzero().squeeze(1)
    draw = torch.randperm(len(others), generator=setup.random("backdoor", number))
    chosen = others[draw[:NUM_POISONS]]
    dataset = PoisonedDataset(
        setup.clean,
        _patched(setup.images[chosen]),
        chosen,
        labels=torch.full((len(chosen),), label),
    )
    return Attack(dataset, _patched(setup.test_images[setup.test_targets != label]), label)


ATTACKS: dict[str, Callable[[Setup, int], Attack]] = {
    "gradient-matching": gradient_matching,
    "bullseye-polytope": bullseye_polytope,
    "feature-collision": feature_collision,
    "sleeper-agent": sleeper_agent,
    "label-flip": label_flip,
    "patch-backdoor": patch_backdoor,
}
"""Name on the command line to what makes the attack on a target, by its number."""


def _crafted(
    setup: Setup,
    bases: Tensor,
    objective: poisons.Objective,
    purpose: str,
    number: int,
    target: Tensor,
    label: int,
    *,
    transfer: bool = False,
) -> Attack:
    found = poisons.craft(
        setup.images[bases],
        objective,
        budget=BUDGET,
        steps=STEPS,
        generator=setup.random(purpose, number),
    )
    dataset = PoisonedDataset(setup.clean, found.inputs, bases)
    return Attack(dataset, target, label, setup.surrogates[0] if transfer else None)


def _patched(images: Tensor) -> Tensor:
    return poisons.stamp(images, PATCH)


@torch.no_grad()
def accuracy(model: nn.Module, setup: Setup) -> float:
    """On the test set."""
    return float((model(setup.test_images).argmax(1) == setup.test_targets).float().mean())
