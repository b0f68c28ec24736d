from __future__ import annotations

from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

from lightning_robust import JTT, PDE, ContractError

SIZES = (30, 6, 3, 0, 11)
N = sum(SIZES)


class Grouped(Dataset):
    """Groups of the given sizes, in random order; feature 0 is the index."""

    def __init__(self, sizes: tuple[int, ...] = SIZES) -> None:
        g = torch.Generator().manual_seed(0)
        groups = torch.cat([torch.full((s,), i) for i, s in enumerate(sizes)])
        self.groups = groups[torch.randperm(len(groups), generator=g)]
        self.targets = (self.groups >= len(sizes) // 2).long()
        self.x = torch.randn(len(groups), 3, generator=g)
        self.x[:, 0] = torch.arange(len(groups))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.targets[index])


class Module(LightningModule):
    def __init__(self, make_schedule=None, per_step: bool = False) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.net = nn.Linear(3, 2)
        nn.init.uniform_(self.net.weight, -0.1, 0.1, generator=g)
        nn.init.zeros_(self.net.bias)
        self.make_schedule, self.per_step = make_schedule, per_step
        self.played: dict[int, list[list[int]]] = {}
        self.rates: list[float] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.played.setdefault(self.current_epoch, []).append(x[:, 0].long().tolist())
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        loss = F.cross_entropy(self.net(x / 100), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.make_schedule is None:
            return optimizer
        config = {
            "scheduler": self.make_schedule(optimizer),
            "interval": "step" if self.per_step else "epoch",
            "monitor": "loss",
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    def epoch(self, number: int) -> list[int]:
        return [index for batch in self.played[number] for index in batch]


def fit(
    method: Callback, epochs: int, sizes=SIZES, batch_size=8, **kwargs
) -> tuple[Module, Trainer]:
    module = kwargs.pop("module", None) or Module(**kwargs)
    trainer = Trainer(
        callbacks=[method],
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(Grouped(sizes), batch_size=batch_size, shuffle=True))
    return module, trainer


def sizes_of(module: Module, epoch: int, sizes=SIZES) -> list[int]:
    """How many examples of each group the epoch plays; each at most once."""
    played = module.epoch(epoch)
    assert len(set(played)) == len(played)
    drawn = Counter(Grouped(sizes).groups[played].tolist())
    return [drawn[group] for group in range(len(sizes))]


@pytest.mark.parametrize(
    ("cap", "expected"), [(None, [56, 56, 56, 56]), (150, [150, 150, 56, 150])]
)
def test_warm_up_on_the_counts_of_waterbirds(cap, expected):
    """Line 3 of Algorithm 1: 224 of 4,795; and what the authors' code takes with a cap."""
    counts = (3498, 184, 56, 1057)
    with pytest.warns(UserWarning, match="nothing will be added"):
        module, _ = fit(PDE(cap=cap), 1, counts, batch_size=512)
    assert sizes_of(module, 0, counts) == expected


def test_warm_up_of_many_tiny_and_empty_groups():
    """CivilComments: combinations of eight attributes and the class, most of them rare."""
    counts = tuple(range(0, 1024, 16)) + (0,) * 446 + (1, 2)
    with pytest.warns(UserWarning, match="nothing will be added"):
        module, _ = fit(PDE(cap=150), 1, counts, batch_size=4096)
    assert len(counts) == 512
    assert sizes_of(module, 0, counts) == [min(150, count) for count in counts]


def test_the_set_grows_as_in_algorithm_1():
    """Every epoch's set, against the bookkeeping of lines 8-14, written with Python's sets."""
    module, trainer = fit(PDE(warmup_epochs=3, interval=2, num_new=9, seed=4), 14)
    assert sizes_of(module, 0) == [3, 3, 3, 0, 3]
    current, sizes = set(module.epoch(0)), []
    for epoch in range(14):
        played = set(module.epoch(epoch))
        if epoch >= 3 and (epoch - 3) % 2 == 0:
            unused = set(range(N)) - current
            new = played - current
            assert len(new) == min(9, len(unused))
            assert new <= unused
            assert current <= played
            current |= new
        assert played == current
        sizes.append(len(module.epoch(epoch)))
    assert sizes == [12, 12, 12, 21, 21, 30, 30, 39, 39, 48, 48, 50, 50, 50]
    assert trainer.callback_metrics["pde/num_examples"] == 50


def test_what_is_added_is_drawn_from_all_that_is_left():
    """38 are left, 27 of them of group 0: the share of group 0 in 60 draws of 9."""
    share = 0
    for seed in range(60):
        module, _ = fit(PDE(warmup_epochs=1, interval=1, num_new=9, seed=seed), 2, batch_size=64)
        share += sizes_of(module, 1)[0] - sizes_of(module, 0)[0]
    assert share / (60 * 9) == pytest.approx(27 / 38, abs=0.07)  # four standard deviations


def test_balanced_expansion_adds_equally_many_while_they_last():
    """Section 3.2: in the last epochs what is new comes from the larger groups alone."""
    method = PDE(warmup_epochs=1, interval=1, num_new=9, balanced_expansion=True)
    module, _ = fit(method, 6)
    assert [sizes_of(module, epoch) for epoch in range(6)] == [
        [3, 3, 3, 0, 3],
        [6, 6, 3, 0, 6],
        [11, 6, 3, 0, 10],
        [19, 6, 3, 0, 11],
        [28, 6, 3, 0, 11],
        [30, 6, 3, 0, 11],
    ]


def test_attribute_balanced_on_the_counts_of_celeba():
    """The authors' command: 5,548 at first, then another 48,534, then 50 at a time."""
    counts = (71629, 66874, 22880, 1387)  # dark-haired women and men, blond women and men
    data = Grouped(counts)
    method = PDE(
        warmup_epochs=1,
        interval=1,
        num_new=50,
        expansion_policy="attribute_balanced",
        attributes=data.groups % 2,
    )
    kept = []
    method.targets, method.group_ids, method.num_classes = data.targets, data.groups, 2
    method._cells = (data.groups % 2) * 2 + data.targets
    for epoch in range(4):
        method.decide(epoch)
        kept.append(method.vote().clone())
    drawn = [torch.bincount(data.groups[mask], minlength=4).tolist() for mask in kept]
    assert drawn[0] == [1387] * 4
    assert drawn[1] == [22880, 1387, 22880, 1387]
    assert sum(drawn[1]) == 48534
    assert bool((kept[0] & ~kept[1]).any())  # another set, not an extension
    assert [sum(sizes) for sizes in drawn[2:]] == [48584, 48634]
    assert not bool((kept[1] & ~kept[2]).any())


def test_attribute_balanced_in_a_fit():
    data = Grouped((9, 4, 5, 2))
    method = PDE(
        warmup_epochs=1,
        interval=1,
        num_new=3,
        expansion_policy="attribute_balanced",
        attributes=(data.groups % 2).tolist(),
    )
    module, _ = fit(method, 3, (9, 4, 5, 2))
    assert sizes_of(module, 0, (9, 4, 5, 2)) == [2, 2, 2, 2]
    assert sizes_of(module, 1, (9, 4, 5, 2)) == [5, 2, 5, 2]
    assert sum(sizes_of(module, 2, (9, 4, 5, 2))) == 17


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_training_is_the_loop_written_by_hand(reset, factor):
    """Momentum goes on over the expansion, or starts anew; learning rates as told."""
    method = PDE(
        warmup_epochs=2,
        interval=1,
        num_new=9,
        reset_optimizer=reset,
        learning_rate_factor=factor,
    )
    module, _ = fit(method, 4)
    data, weight, bias = Grouped(), Module().net.weight.detach().clone(), torch.zeros(2)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for epoch in range(4):
        if epoch == 2 and reset:
            velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
        for batch in module.played[epoch]:
            x, y = data.x[batch] / 100, F.one_hot(data.targets[batch], 2)
            error = ((x @ weight.T + bias).softmax(1) - y) / len(batch)
            gradients = [error.T @ x, error.sum(0)]
            velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
            rate = 0.1 * (factor if epoch >= 2 else 1)
            weight = weight - rate * velocity[0]
            bias = bias - rate * velocity[1]
    assert torch.allclose(module.net.weight, weight, atol=1e-6)
    assert torch.allclose(module.net.bias, bias, atol=1e-6)


SCHEDULES = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.2, total_iters=6),
    "Cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6, eta_min=0.01),
    "Restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, eta_min=0.01),
    "OneCycle": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=60),
    "Cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.4, step_size_up=3),
    "Plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5, min_lr=0.01),
    "Sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.5)], [4]
    ),
    "Chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, total_iters=5), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using")
@pytest.mark.filterwarnings("ignore:The epoch parameter in .* was not necessary")  # torch 2.6
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("per_step", [False, True])
def test_the_factor_survives_learning_rate_schedules(name, per_step):
    """From the first expansion on, the schedule is the same one times the factor."""
    rates = []
    for factor in (1.0, 0.25):
        method = PDE(warmup_epochs=2, interval=3, num_new=4, learning_rate_factor=factor)
        module, _ = fit(method, 7, make_schedule=SCHEDULES[name], per_step=per_step)
        rates.append(module.rates)
    warm_up = sum(len(module.played[epoch]) for epoch in range(2))
    plain, scaled = (torch.tensor(values) for values in rates)
    assert torch.equal(plain[:warm_up], scaled[:warm_up])
    assert torch.allclose(scaled[warm_up:], 0.25 * plain[warm_up:], rtol=1e-5)
    assert len(set(plain.tolist())) > 1  # there is a schedule


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"warmup_epochs": 0}, "warmup_epochs"),
        ({"interval": 0}, "interval"),
        ({"num_new": 1.5}, "num_new"),
        ({"cap": 0}, "cap"),
        ({"balanced_expansion": 1}, "balanced_expansion"),
        ({"expansion_policy": "all"}, "expansion_policy"),
        ({"expansion_policy": "attribute_balanced"}, "attributes"),
        ({"attributes": [0, 1]}, "attributes"),
        ({"learning_rate_factor": 0}, "learning_rate_factor"),
        ({"reset_optimizer": None}, "reset_optimizer"),
    ],
)
def test_refuses_bad_arguments_by_name(arguments, words):
    with pytest.raises(ContractError, match=words):
        PDE(**arguments)


def test_refuses_attributes_of_another_length_before_the_first_step():
    module = Module()
    method = PDE(warmup_epochs=1, expansion_policy="attribute_balanced", attributes=[0, 1, 0, 1, 1])
    with pytest.raises(ContractError, match="50"):
        fit(method, 2, module=module)
    assert not module.played


class Rates(Callback):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("pde_first", [True, False])
def test_a_restart_in_the_same_epoch_does_not_undo_the_factor(pde_first):
    """Whichever method is first in the list: the initial rates, times the factor."""
    pde = PDE(warmup_epochs=2, interval=3, num_new=4, learning_rate_factor=0.25)
    methods = [pde, JTT(2)] if pde_first else [JTT(2), pde]
    trainer = Trainer(
        callbacks=[*methods, record := Rates()],
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(SCHEDULES["StepLR"]), DataLoader(Grouped(), batch_size=64))
    expected = [0.1, 0.1, 0.025, 0.025, 0.0025, 0.0025]
    assert record.rates == pytest.approx(expected)
