"""Adversarial training against the same attack written out, and what it must not touch."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import AdversarialTraining, AnnotatedDataset, ContractError
from lightning_robust.randomness import generator

N = 40
X = torch.randn(N, 3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3


class Module(LightningModule):
    """Batch norm, dropout, and a float in the batch that only the loss sees."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(
                nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3)
            )
        self.seen: list[dict[str, torch.Tensor]] = []
        self.before: list[dict[str, torch.Tensor]] = []

    def training_step(self, batch, batch_idx):
        if self.trainer.training:
            self.seen.append({k: v.clone() for k, v in batch.items()})
            self.before.append({k: v.clone() for k, v in self.net.state_dict().items()})
        losses = F.cross_entropy(self.net(batch["x"]), batch["y"], reduction="none")
        return (losses * batch["weight"]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Watch(Callback):
    """Looks at batches, where other callbacks do."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch["x"].clone())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert torch.equal(batch["x"], self.batches[-1])


class Data(TensorDataset):
    targets = Y

    def __getitem__(self, index):
        x, y, weight = super().__getitem__(index)
        return {"x": x, "y": y, "weight": weight}


def fit(method, epochs: int = 2, module=None, data=None) -> tuple[Module, Watch, Trainer]:
    torch.manual_seed(0)
    module, watch = module or Module(), Watch()
    data = data or Data(X, Y, 1 + torch.rand(N))
    trainer = Trainer(
        callbacks=[method, watch],
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(data, 16, shuffle=True))
    return module, watch, trainer


def test_the_step_sees_what_the_attack_written_out_makes():
    """In evaluation mode, on the cross-entropy, whatever the loss; each example has its start."""
    method = AdversarialTraining(0.1, step_size=0.06, num_steps=4, maximum=1.5, seed=7)
    module, watch, _ = fit(method)
    net, places = Module().net.eval(), {float(x[0, 0]): index for index, x in enumerate(X)}
    assert len(module.seen) == len(watch.batches) == 6
    for step, (seen, plain) in enumerate(zip(module.seen, watch.batches, strict=True)):
        net.load_state_dict(module.before[step])
        low, high = plain - 0.1, plain + 0.1
        indices = [places[float(x[0, 0])] for x in plain]
        starts = [
            torch.rand(3, 4, generator=generator(7, f"adversarial start 0 {index}", step // 3))
            for index in indices
        ]
        moved = (plain + 0.1 * (2 * torch.stack(starts) - 1)).clamp(max=1.5)
        for _ in range(4):
            moved.requires_grad_()
            loss = F.cross_entropy(net(moved), Y[indices], reduction="sum")
            [slope] = torch.autograd.grad(loss, moved)
            moved = moved.detach() + 0.06 * slope.sign()
            moved = torch.minimum(torch.maximum(moved, low), high).clamp(max=1.5)
        torch.testing.assert_close(seen["x"], moved)
        before, after = (F.cross_entropy(net(x), Y[indices]) for x in (plain, moved))
        assert after > before
        assert (seen["weight"] >= 1).all()  # a float that the logits do not depend on


def test_the_attack_moves_no_statistics_and_draws_nothing():
    """Batch norm and dropout are as in a run on the same perturbed batches without an attack."""
    module, _, _ = fit(AdversarialTraining(0.1, num_steps=3))
    batches = iter([dict(seen) for seen in module.seen])

    class Replays(Module):
        def training_step(self, batch, batch_idx):
            batch = next(batches) if self.trainer.training else batch
            return super().training_step(batch, batch_idx)

    replay, _, _ = fit(AdversarialTraining(0.0), module=Replays())
    for name, value in module.state_dict().items():
        assert torch.equal(value, replay.state_dict()[name]), name


def test_plain_training_before_its_start_and_without_epsilon():
    module, watch, trainer = fit(AdversarialTraining(0.1, start_epoch=1))
    same = [torch.equal(s["x"], x) for s, x in zip(module.seen, watch.batches, strict=True)]
    assert same == [True] * 3 + [False] * 3
    assert "training_step" not in vars(trainer.strategy)


class Tokens(Module):
    """Its inputs are integers."""

    def training_step(self, batch, batch_idx):
        tokens, y = batch
        return F.cross_entropy(self.net(F.one_hot(tokens, 4).float()), y)


def test_refuses_inputs_that_cannot_be_perturbed():
    tokens = AnnotatedDataset(TensorDataset(torch.zeros(N, 3, dtype=torch.int64), Y), targets=Y)
    with pytest.raises(ContractError, match="no floating-point tensor"):
        fit(AdversarialTraining(), module=Tokens(), data=tokens)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epsilon", -0.1), ("step_size", 0), ("num_steps", 0), ("start_epoch", -1)],
)
def test_refuses_bad_arguments_by_name(name, value):
    with pytest.raises(ContractError, match=name):
        AdversarialTraining(**{name: value})
    with pytest.raises(ContractError, match="maximum"):
        AdversarialTraining(minimum=1.0, maximum=0.0)
