from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust import SPARE, ContractError
from lightning_robust.observing import Observation

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
]


class Spurious(Dataset):
    """Two classes; a spurious feature splits each into a large and a small group.

    Group 2y + s: 40 and 8 of class 0, 6 and 30 of class 1, in mixed order.
    """

    sizes = (40, 8, 6, 30)

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        groups = torch.cat([torch.full((s,), i) for i, s in enumerate(self.sizes)])
        self.groups = groups[torch.randperm(len(groups), generator=g)]
        self.targets = self.groups // 2
        spurious = self.groups % 2
        centre = torch.stack([self.targets * 1.0, spurious * 5.0, (self.groups - 1.5)], 1)
        self.x = centre + 0.1 * torch.randn(len(groups), 3, generator=g)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.targets[index])


class Module(LightningModule):
    def __init__(self, classes: int = 2, inputs: int = 3) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.body = nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=g)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self.head(self.body(batch[0])), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Diary(Callback):
    """How each epoch begins, and what it plays."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.optimizers: list[dict] = []
        self.rates: list[float] = []
        self.schedules: list[dict] = []

    def on_train_epoch_start(self, trainer, module):
        self.weights.append({k: v.clone() for k, v in module.state_dict().items()})
        self.optimizers.append(dict(trainer.optimizers[0].state))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.schedules.append(dict(trainer.lr_scheduler_configs[0].scheduler.state_dict()))


def fit(method: SPARE, dataset=None, module=None, *, val=None, batch_size=16, **kwargs):
    options = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    diary = Diary()
    module = module or Module()
    trainer = Trainer(callbacks=[method, diary], **{**options, **kwargs})
    loader = DataLoader(dataset or Spurious(), batch_size=batch_size, shuffle=True)
    trainer.fit(module, loader, val)
    diary.metrics = dict(trainer.callback_metrics)
    return module, diary


def weights_by_hand(clusters: Tensor, targets: Tensor, power: dict[int, float]) -> Tensor:
    """|cluster in class| ** -power, every class with the same sum, mean 1, in loops."""
    raw = []
    for cluster, target in zip(clusters.tolist(), targets.tolist(), strict=True):
        size = sum(
            c == cluster and t == target
            for c, t in zip(clusters.tolist(), targets.tolist(), strict=True)
        )
        raw.append(size ** -power[target])
    classes = sorted(set(targets.tolist()))
    totals = {
        label: sum(w for w, t in zip(raw, targets.tolist(), strict=True) if t == label)
        for label in classes
    }
    scale = len(raw) / len(classes)
    return torch.tensor(
        [w / totals[t] * scale for w, t in zip(raw, targets.tolist(), strict=True)],
        dtype=torch.float64,
    )


def partition(labels: Tensor) -> set[frozenset[int]]:
    return {frozenset((labels == label).nonzero().flatten().tolist()) for label in labels.unique()}


# --- clusters and weights -------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["probs", "logits", "features"])
def test_finds_the_groups_and_weighs_them(space):
    method, dataset = SPARE(1, space=space, num_clusters=2), Spurious()
    fit(method, dataset)
    assert partition(method.clusters) == partition(dataset.groups)
    power = {y: 1.0 if s >= 0.9 else 2.0 for y, s in method.silhouettes.items()}
    assert torch.allclose(method.weights, weights_by_hand(dataset.groups, dataset.targets, power))


def test_the_number_of_clusters_is_chosen_and_reported():
    method = SPARE(1, space="features", max_clusters=5)
    _, diary = fit(method, Spurious())
    for label in (0, 1):
        number = int((method.class_of_cluster == label).sum())
        assert diary.metrics[f"spare/num_clusters/{label}"] == number
        assert diary.metrics[f"spare/silhouette/{label}"] == pytest.approx(
            method.silhouettes[label], abs=1e-6
        )
        assert 2 <= number <= 5
    assert partition(method.clusters) == partition(Spurious().groups)


@pytest.mark.parametrize(
    ("power", "by_label"),
    [(1.0, {0: 1.0, 1: 1.0}), ({1: 0.5, 0: 3.0}, {0: 3.0, 1: 0.5}), (0, {0: 0.0, 1: 0.0})],
)
def test_powers_go_by_class_label(power, by_label):
    method, dataset = SPARE(1, num_clusters=2, power=power), Spurious()
    fit(method, dataset)
    expected = weights_by_hand(method.clusters, dataset.targets, by_label)
    assert torch.allclose(method.weights, expected, rtol=1e-12)


@pytest.mark.parametrize(("threshold", "power"), [(-1.0, 1.0), (1.0, 4.0)])
def test_the_power_follows_the_silhouette(threshold, power):
    method = SPARE(1, num_clusters=2, silhouette_threshold=threshold, low_separation_power=4.0)
    dataset = Spurious()
    fit(method, dataset)
    expected = weights_by_hand(method.clusters, dataset.targets, {0: power, 1: power})
    assert torch.allclose(method.weights, expected, rtol=1e-12)


def test_clustering_all_classes_at_once_splits_the_clusters_by_class():
    class Told(SPARE):
        def observe(self, *quantities, dataset=None):
            return Observation(features=Spurious().groups[:, None] % 2 * 5.0)  # only spurious

    method, dataset = Told(1, space="features", per_class=False, num_clusters=2), Spurious()
    fit(method, dataset)
    assert partition(method.clusters) == partition(dataset.groups)


def test_the_following_epochs_draw_by_weight():
    played: list[list[int]] = []

    class Indexed(Spurious):
        def __getitem__(self, index):
            played.append(index)
            return super().__getitem__(index)

    method, dataset = SPARE(1, num_clusters=2, power=1.0, seed=2), Indexed()
    n = len(dataset)
    fit(method, dataset, max_epochs=60)
    drawn = torch.tensor(played[-59 * n :])
    share = torch.bincount(dataset.groups[drawn], minlength=4) / len(drawn)
    assert (share - 0.25).abs().max() < 0.03


def test_too_short_a_training_is_warned_about():
    with pytest.warns(UserWarning, match="max_epochs=2.*nothing will be resampled"):
        fit(SPARE(2), max_epochs=2)


# --- starting again -------------------------------------------------------------------------------


@pytest.mark.parametrize("separation_epoch", [1, 2])
def test_starts_again_from_the_initial_weights_with_fresh_optimizer_and_schedule(separation_epoch):
    method = SPARE(separation_epoch, num_clusters=2)
    _, diary = fit(method, max_epochs=4)
    again = separation_epoch
    for name, initial in diary.weights[0].items():
        assert torch.equal(diary.weights[again][name], initial), name  # buffers too
    assert any(
        not torch.equal(diary.weights[again - 1][name], diary.weights[0][name])
        for name in diary.weights[0]
    ) == (again > 1)
    assert diary.optimizers[again] == {}
    assert diary.rates == [0.01 * 0.5 ** (e if e < again else e - again) for e in range(4)]
    assert diary.schedules[again] == diary.schedules[0]
    assert method.initial is None  # not carried along in later checkpoints


def test_continues_from_where_it_is_without_reinitialisation():
    method = SPARE(1, num_clusters=2, reinitialise=False)
    _, diary = fit(method)
    assert diary.rates == [0.01, 0.005, 0.0025]
    assert diary.optimizers[1]
    assert not torch.equal(diary.weights[1]["head.weight"], diary.weights[0]["head.weight"])
    assert method.initial is None
    assert method.weights is not None


def test_training_after_the_separation_is_training_from_scratch_on_the_drawn_examples():
    played: list[int] = []

    class Indexed(Spurious):
        def __getitem__(self, index):
            played.append(index)
            return super().__getitem__(index)

    dataset = Indexed()
    module, _ = fit(SPARE(1, num_clusters=2), dataset, max_epochs=3)
    n = len(dataset)
    scratch = Module()
    (optimizer,), (schedule,) = scratch.configure_optimizers()
    for epoch in (played[-2 * n : -n], played[-n:]):
        for indices in torch.tensor(epoch).split(16):
            optimizer.zero_grad()
            scratch.training_step((dataset.x[indices], dataset.targets[indices]), 0).backward()
            optimizer.step()
        schedule.step()
    for expected, found in zip(scratch.parameters(), module.parameters(), strict=True):
        assert torch.allclose(expected, found, atol=1e-6)


def test_a_plateau_schedule_starts_again_too():
    class Plateau(Module):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss"},
            }

    _, diary = fit(
        SPARE(2, num_clusters=2),
        module=Plateau(),
        val=DataLoader(Spurious(), batch_size=100),
        max_epochs=4,
    )
    assert diary.schedules[2] == diary.schedules[0]
    assert diary.schedules[1] != diary.schedules[0]


def test_fitting_twice_separates_twice():
    method = SPARE(1, num_clusters=2)
    fit(method)
    first = method.weights
    method_again = fit(method)[1]
    assert torch.equal(method.weights, first)
    assert method_again.optimizers[1] == {}


# --- choosing the epoch ---------------------------------------------------------------------------


class Scripted(SPARE):
    """Sees clusters that agree with the groups to a degree that depends on the epoch.

    ``wrong[e]`` examples of group 1 look like group 0 at the end of epoch e.
    """

    wrong = (None, 6, 1, 0, 0, 3)

    def reset(self) -> None:
        super().reset()
        self.seen: list[tuple[int, int]] = []

    def observe(self, *quantities, dataset=None):
        epoch = self.conductor.progress.decided + 1
        shown = Spurious()
        self.seen.append((epoch, len(shown)))
        points = shown.groups.double()
        mistaken = (shown.groups == 1).nonzero().flatten()[: self.wrong[epoch]]
        points[mistaken] = 0.0
        return Observation(logits=points[:, None])


@pytest.mark.parametrize(
    ("wrong", "best"),
    [
        ((None, 6, 1, 0, 0, 3), 3),  # of equals the first
        ((None, 0, 1, 2, 3, 4), 1),
        ((None, 4, 5, 3, 6, 2), 5),
    ],
)
def test_auto_takes_the_epoch_with_the_largest_minimum_recall(wrong, best):
    method = Scripted("auto", space="logits", num_clusters=2, validation_groups=None)
    method.wrong = wrong
    _, diary = fit(method, val=DataLoader(Spurious(), batch_size=100), max_epochs=7)
    assert method.best_recall == pytest.approx((8 - wrong[best]) / 8)
    expected = Spurious().groups.clone()
    mistaken = (expected == 1).nonzero().flatten()[: wrong[best]]
    expected[mistaken] = 0
    assert partition(method.clusters) == partition(expected)
    # resampled and started again once the last candidate was seen
    for name, initial in diary.weights[0].items():
        assert torch.equal(diary.weights[5][name], initial)
    assert not torch.equal(diary.weights[4]["head.weight"], diary.weights[0]["head.weight"])
    assert [epoch for epoch, _ in method.seen if epoch > 5] == []


def test_auto_stops_at_the_last_candidate():
    method = Scripted("auto", space="logits", num_clusters=2, last_separation_epoch=2)
    _, diary = fit(method, val=DataLoader(Spurious(), batch_size=100), max_epochs=4)
    assert {epoch for epoch, _ in method.seen} == {1, 2}
    assert diary.optimizers[2] == {}
    assert method.best_recall == pytest.approx(7 / 8)


def test_auto_observes_the_validation_set_for_real():
    method = SPARE("auto", num_clusters=2, last_separation_epoch=2)
    fit(method, val=DataLoader(Spurious(), batch_size=50), max_epochs=3)
    assert method.best_recall == 1.0
    groups = Spurious().groups
    other = SPARE("auto", num_clusters=2, last_separation_epoch=1, validation_groups=groups * 0)
    fit(other, val=DataLoader(Spurious(), batch_size=50), max_epochs=3)
    assert other.best_recall < 1.0  # one group a class is halved by its two clusters


def test_auto_needs_a_validation_set_with_groups():
    with pytest.raises(ContractError, match="validation DataLoader"):
        fit(SPARE("auto"), max_epochs=7)

    class NoGroups(Spurious):
        def __init__(self) -> None:
            super().__init__()
            del self.groups

    with pytest.raises(ContractError, match="groups"):
        fit(SPARE("auto"), NoGroups(), val=DataLoader(NoGroups(), batch_size=50), max_epochs=7)


# --- any training set -----------------------------------------------------------------------------


def test_clusters_are_made_on_the_clean_view():
    class Augmented(Spurious):
        def __getitem__(self, index):
            return torch.randn(3), int(self.targets[index])

    method = SPARE(1, num_clusters=2, space="features", clean_dataset=Spurious())
    fit(method, Augmented())
    assert partition(method.clusters) == partition(Spurious().groups)
    without = SPARE(1, num_clusters=2, space="features")
    fit(without, Augmented())
    assert partition(without.clusters) != partition(Spurious().groups)


def test_classes_with_one_example_and_gaps_between_labels():
    class Lonely(Spurious):
        def __init__(self) -> None:
            super().__init__()
            self.targets = self.targets.clone()
            self.targets[0], self.targets[5] = 3, 4  # no class 2

    method, dataset = SPARE(1, num_clusters=2, power=1.0), Lonely()
    fit(method, dataset, Module(classes=5))
    expected = weights_by_hand(method.clusters, dataset.targets, dict.fromkeys((0, 1, 3, 4), 1.0))
    assert torch.allclose(method.weights, expected)
    assert method.weights[0] == pytest.approx(len(dataset) / 4)
    assert method.silhouettes.keys() == {0, 1, 3, 4}


def test_a_thousand_classes():
    class Thousand(Dataset):
        def __init__(self) -> None:
            g = torch.Generator().manual_seed(0)
            self.targets = torch.arange(3000) % 1000
            self.x = torch.randn(3000, 4, generator=g)

        def __len__(self) -> int:
            return 3000

        def __getitem__(self, index):
            return self.x[index], int(self.targets[index])

    method, dataset = SPARE(1, num_clusters=2), Thousand()
    fit(method, dataset, Module(classes=1000, inputs=4), batch_size=256, max_epochs=2)
    power = {y: 1.0 if s >= 0.9 else 2.0 for y, s in method.silhouettes.items()}
    assert len(power) == 1000
    totals = torch.zeros(1000, dtype=torch.float64).index_add_(0, dataset.targets, method.weights)
    assert torch.allclose(totals, torch.full((1000,), 3.0, dtype=torch.float64))
    assert len(method.clusters.unique()) > 1000


# --- refusing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"separation_epoch": 0}, "separation_epoch"),
        ({"separation_epoch": "never"}, "separation_epoch"),
        ({"num_clusters": 0}, "num_clusters"),
        ({"max_clusters": 1}, "max_clusters"),
        ({"space": "pixels"}, "space.*pixels"),
        ({"per_class": "yes"}, "per_class"),
        ({"power": -1.0}, "power"),
        ({"power": {0: 1.0, 1: -2.0}}, "power"),
        ({"silhouette_threshold": 1.5}, "silhouette_threshold"),
        ({"low_separation_power": -1}, "low_separation_power"),
        ({"reinitialise": None}, "reinitialise"),
        ({"last_separation_epoch": 0}, "last_separation_epoch"),
    ],
)
def test_refuses_bad_arguments_by_name(arguments, word):
    with pytest.raises(ContractError, match=word):
        SPARE(**arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"power": {0: 1.0}}, r"power=\{0: 1.0\} has no entry for the classes \[1\]"),
        ({"clean_dataset": [1, 2, 3]}, "clean_dataset has 3 examples and the training set 84"),
        ({"head": "nowhere"}, "head='nowhere'"),
    ],
)
def test_refuses_before_the_first_step(arguments, words):
    class NeverTrained(Module):
        def training_step(self, batch, batch_idx):
            pytest.fail("a step was made")

    with pytest.raises(ContractError, match=words):
        fit(SPARE(1, **arguments), module=NeverTrained())


def test_refuses_outputs_that_are_not_finite():
    class Diverges(Module):
        def on_train_batch_end(self, *_):
            self.head.bias.data.fill_(float("nan"))

    with pytest.raises(ContractError, match="not finite"):
        fit(SPARE(1), module=Diverges())
