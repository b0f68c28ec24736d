from __future__ import annotations

from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust import JTT, ContractError

N = 60


class Noisy(Dataset):
    """Two classes; every sixth example has the other's label, and feature 0 is the index."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        clean = torch.arange(N) % 2
        self.targets = torch.where(torch.arange(N) % 6 == 0, 1 - clean, clean)
        self.x = torch.randn(N, 4, generator=g) + 2 * clean[:, None]
        self.x[:, 0] = torch.arange(N)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.targets[index])


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        for parameter in self.net.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=g)
        self.played: dict[int, list[int]] = {}

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x[:, 1:])  # an observation gets no further
        self.played.setdefault(self.current_epoch, []).extend(x[:, 0].long().tolist())
        return F.cross_entropy(logits, y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class Diary(Callback):
    """How each epoch begins and ends."""

    def __init__(self) -> None:
        self.begins: list[dict[str, Tensor]] = []
        self.predictions: list[Tensor] = []
        self.rates: list[float] = []
        self.moments: list[int] = []

    def on_train_epoch_start(self, trainer, module):
        self.begins.append({k: v.clone() for k, v in module.state_dict().items()})
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.moments.append(len(trainer.optimizers[0].state))


class AtTheEnd(Diary):
    """Stands before the method, and so sees the model as the epoch left it."""

    def on_train_epoch_end(self, trainer, module):
        module.eval()
        with torch.no_grad():
            logits = [module.net(Noisy().x[i : i + 1, 1:])[0] for i in range(N)]
        module.train()
        self.predictions.append(torch.stack(logits).argmax(1))


def fit(method: JTT, epochs: int = 4, module: Module | None = None):
    module, before, after = module or Module(), AtTheEnd(), Diary()
    trainer = Trainer(
        callbacks=[before, method, after],
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(Noisy(), batch_size=10, shuffle=True))
    return module, before, after, trainer


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_errors_are_those_of_the_first_training(epochs):
    """Example by example, in evaluation mode, at the end of epoch T."""
    method = JTT(epochs, upweight=4)
    _, before, _, trainer = fit(method)
    expected = before.predictions[epochs - 1] != Noisy().targets
    assert 0 < expected.sum() < N
    assert torch.equal(method.errors, expected)
    assert trainer.callback_metrics["jtt/error_rate"] == pytest.approx(float(expected.sum()) / N)


def test_the_first_training_is_plain():
    module, *_ = fit(JTT(2))
    for epoch in range(2):
        assert sorted(module.played[epoch]) == list(range(N))


def test_the_second_training_starts_from_the_beginning():
    """Weights, running statistics, learning rate and moments."""
    _, _, after, _ = fit(JTT(2))
    for name, value in after.begins[0].items():
        assert torch.equal(value, after.begins[2][name]), name
    assert any(not torch.equal(v, after.begins[1][k]) for k, v in after.begins[0].items())
    assert after.moments[0] == after.moments[2] == 0
    assert after.moments[1] > 0
    assert after.rates[2:] == after.rates[:2]


def test_or_goes_on():
    _, _, after, _ = fit(JTT(2, reinitialise=False))
    assert after.rates == [0.1, 0.05, 0.025, 0.0125]
    assert after.moments[2] > 0
    assert any(not torch.equal(v, after.begins[2][k]) for k, v in after.begins[0].items())


def test_an_error_is_drawn_one_plus_lambda_times_as_often():
    method = JTT(1, upweight=4)
    module, *_ = fit(method, 101)
    drawn = Counter(i for epoch in range(1, 101) for i in module.played[epoch])
    errors = method.errors.nonzero().flatten().tolist()
    share = sum(drawn[i] for i in errors) / (100 * N)
    weight = 5 * len(errors)
    # three standard deviations of a binomial share of 6,000 draws
    assert share == pytest.approx(weight / (weight + N - len(errors)), abs=0.02)
    assert all(len(module.played[epoch]) == N for epoch in range(101))


def test_the_clean_view_is_what_is_judged():
    clean = Noisy()
    clean.x = -clean.x
    method = JTT(3, clean_dataset=clean)
    fit(method)
    other = JTT(3)
    fit(other)
    assert not torch.equal(method.errors, other.errors)


def test_without_a_second_training_there_is_a_warning():
    with pytest.warns(UserWarning, match="no second training"):
        fit(JTT(4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"identification_epochs": 0}, "identification_epochs"),
        ({"upweight": -1}, "upweight"),
        ({"reinitialise": 1}, "reinitialise"),
    ],
)
def test_refuses_bad_arguments_by_name(arguments, words):
    with pytest.raises(ContractError, match=words):
        JTT(**arguments)


def test_refuses_a_clean_view_of_another_length_before_the_first_step():
    module = Module()
    with pytest.raises(ContractError, match="clean_dataset has 59 examples"):
        fit(JTT(1, clean_dataset=torch.utils.data.Subset(Noisy(), range(59))), module=module)
    assert not module.played
