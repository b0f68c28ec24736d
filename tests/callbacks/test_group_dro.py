from __future__ import annotations

import math
from collections import Counter
from itertools import chain
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust import ContractError, GroupDRO

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

SIZES = (30, 6, 3, 11)
N = sum(SIZES)


class Grouped(Dataset):
    """Four groups, a fifth without examples; each item brings its own index along."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.groups = torch.cat([torch.full((s,), i) for i, s in enumerate(SIZES)])
        self.groups = self.groups[torch.randperm(N, generator=g)]
        self.group_names = ("a", "b", "c", "d", "empty")
        self.targets = (self.groups + torch.randint(2, (N,), generator=g)) % 3
        self.x = torch.randn(N, 5, generator=g) + self.groups[:, None] * 0.3

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.x[index], int(self.targets[index]), index


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3))
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6, generator=g)
    return net.to(dtype)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.played: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y, index = batch
        if self.trainer.training:  # not when it is observed
            self.played.append(index.tolist())
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class History(Callback):
    """q and the gradients behind every batch."""

    def __init__(self, method: GroupDRO) -> None:
        self.method = method
        self.weights: list[Tensor] = []
        self.gradients: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append([p.grad.clone() for p in module.parameters()])
        self.weights.append(self.method.weights.clone())


def fit(method: GroupDRO, dataset: Dataset | None = None, **kwargs) -> tuple[Module, History]:
    module = kwargs.pop("module", None) or Module()
    history = History(method)
    loader = DataLoader(dataset or Grouped(), batch_size=8, shuffle=True)
    options = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(callbacks=[method, history], **{**options, **kwargs})
    trainer.fit(module, loader)
    module.metrics = dict(trainer.callback_metrics)
    return module, history


def algorithm_1(batches, step_size: float, adjustment: float):
    """Algorithm 1 of Sagawa et al., in loops over groups and examples, in float64.

    Yields q and the gradient of sum_g q_g L_g after each batch, and lastly the weights.
    """
    data = Grouped()
    net = network(torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    present = [g for g in range(5) if (data.groups == g).any()]
    q = {g: 1 / len(present) for g in present}
    for batch in batches:
        losses = {}
        for g in present:
            total, count = 0.0, 0
            for i in batch:
                if data.groups[i] == g:
                    logits = net(data.x[i : i + 1].double())[0]
                    total = total - logits.log_softmax(0)[data.targets[i]]
                    count += 1
            if count:
                losses[g] = total / count
        for g in losses:
            constant = adjustment / math.sqrt(SIZES[g])
            q[g] *= math.exp(step_size * (float(losses[g].detach()) + constant))
        normaliser = sum(q.values())
        q = {g: value / normaliser for g, value in q.items()}
        optimizer.zero_grad()
        sum(q[g] * losses[g] for g in losses).backward()
        yield [q.get(g, 0.0) for g in range(5)], [p.grad.clone() for p in net.parameters()]
        optimizer.step()
    yield list(net.parameters()), None


@pytest.mark.parametrize("step_size", [0.01, 1.0])
@pytest.mark.parametrize("adjustment", [0.0, 2.0])
def test_is_algorithm_1(step_size, adjustment):
    """q, gradients and the whole optimisation: the last batch of an epoch has two examples."""
    module, history = fit(GroupDRO(step_size=step_size, adjustment=adjustment))
    assert [len(batch) for batch in module.played[:7]] == [8] * 6 + [2]
    assert sorted(chain(*module.played[:7])) == list(range(N))
    *steps, (weights, _) = algorithm_1(module.played, step_size, adjustment)
    assert len(steps) == len(history.weights) == 14
    for (q, gradients), found_q, found in zip(
        steps, history.weights, history.gradients, strict=True
    ):
        assert torch.allclose(found_q, torch.tensor(q), rtol=1e-5, atol=1e-7)
        for one, other in zip(gradients, found, strict=True):
            assert torch.allclose(one.float(), other, rtol=1e-4, atol=1e-6)
    for one, other in zip(weights, module.parameters(), strict=True):
        assert torch.allclose(one.float(), other, rtol=0, atol=1e-6)


def test_two_processes_are_algorithm_1_on_their_joint_batches(tmp_path):
    """Group losses are those of the batch over both ranks, each group whole on neither."""

    class Report(Callback):
        def on_train_end(self, trainer, module):
            played = [None, None]
            torch.distributed.all_gather_object(played, module.played)
            joint = [[*first, *second] for first, second in zip(*played, strict=True)]
            *steps, (weights, _) = algorithm_1(joint, 0.5, 1.0)
            q = torch.tensor(steps[-1][0])
            method = trainer.callbacks[0]
            error = max(
                float((one.float() - other).detach().abs().max())
                for one, other in zip(weights, module.parameters(), strict=True)
            )
            q_error = float((method.weights - q).abs().max())
            errors = [None, None]
            torch.distributed.all_gather_object(errors, {"q": q_error, "weights": error})
            if trainer.is_global_zero:
                torch.save({name: max(e[name] for e in errors) for name in errors[0]}, self.path)

    report = Report()
    report.path = tmp_path / "errors.pt"
    trainer = Trainer(
        callbacks=[GroupDRO(step_size=0.5, adjustment=1.0), report],
        max_epochs=2,
        accelerator="cpu",
        strategy="ddp_fork",
        devices=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(Grouped(), batch_size=5, shuffle=True))
    errors = torch.load(report.path)
    assert errors["q"] < 1e-6
    assert errors["weights"] < 1e-6


def test_q_starts_uniform_over_the_groups_that_have_examples():
    method = GroupDRO(step_size=0.0)
    _, history = fit(method)
    for q in history.weights:
        assert torch.allclose(q, torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0]))


def test_the_worst_group_gains_weight():
    class Hopeless(Grouped):
        """The labels of group c are noise, those of the others are plain to see."""

        def __init__(self) -> None:
            super().__init__()
            self.x = F.one_hot(self.targets, 5).float() * 4
            noise = self.groups == 2
            self.x[noise] = -self.x[noise]

    method = GroupDRO(step_size=0.3)
    fit(method, Hopeless(), max_epochs=6)
    assert int(method.weights.argmax()) == 2
    assert method.weights[2] > 0.6
    assert method.weights.sum().item() == pytest.approx(1, abs=1e-5)


def test_balanced_sampling_draws_every_group_equally_often():
    module, _ = fit(GroupDRO(balanced_sampling=True, seed=1), max_epochs=40)
    data = Grouped()
    drawn = Counter(int(data.groups[i]) for batch in module.played for i in batch)
    assert sum(drawn.values()) == 40 * N
    for group in range(4):
        # four standard deviations of a binomial share
        assert drawn[group] / (40 * N) == pytest.approx(0.25, abs=0.04)


def test_balanced_sampling_runs_the_same_algorithm_on_the_drawn_batches():
    module, history = fit(GroupDRO(step_size=0.1, balanced_sampling=True))
    *steps, _ = algorithm_1(module.played, 0.1, 0.0)
    for (q, _), found in zip(steps, history.weights, strict=True):
        assert torch.allclose(found, torch.tensor(q), rtol=1e-5, atol=1e-7)


def test_a_later_start_trains_plainly_before():
    method = GroupDRO(step_size=1.0, start_epoch=1, balanced_sampling=True)
    module, history = fit(method)
    data = Grouped()
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for batch, found in zip(module.played[:7], history.gradients, strict=False):
        optimizer.zero_grad()
        F.cross_entropy(net(data.x[batch]), data.targets[batch]).backward()
        for one, other in zip(net.parameters(), found, strict=True):
            assert torch.allclose(one.grad, other, atol=1e-6)
        optimizer.step()
    assert sorted(chain(*module.played[:7])) == list(range(N))
    assert sorted(chain(*module.played[7:])) != list(range(N))
    assert all(torch.equal(q, history.weights[0]) for q in history.weights[:7])
    assert not torch.equal(history.weights[7], history.weights[6])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile's own
def test_a_compiled_module_is_steered_also_where_validation_ran_first():
    """Validation compiles the network before the training loader, and so the hook, is there."""

    class Validated(Module):
        def validation_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch, batch_idx):
            x, y, _ = batch
            return F.cross_entropy(self.net(x), y)

    def run(compiled: bool) -> list[Tensor]:
        torch.compiler.reset()
        module = Validated()
        method = GroupDRO(step_size=0.5, seed=0)
        trainer = Trainer(
            callbacks=[method],
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        shown = torch.compile(module, backend="eager") if compiled else module
        trainer.fit(
            shown,
            DataLoader(Grouped(), batch_size=8, shuffle=True),
            DataLoader(Grouped(), batch_size=8),
        )
        return [*module.parameters(), method.weights]

    for plain, compiled in zip(run(False), run(True), strict=True):
        assert torch.allclose(plain, compiled, atol=1e-6)


def test_logs_q_by_group_name():
    method = GroupDRO(step_size=0.1)
    module, _ = fit(method)
    found = {key: value for key, value in module.metrics.items() if key.startswith("group_dro")}
    names = Grouped().group_names
    assert list(found) == [f"group_dro/weight/{name}" for name in names]
    assert torch.allclose(torch.stack(list(found.values())), method.weights)


def test_groups_may_come_from_the_argument():
    data = Grouped()
    method = GroupDRO(groups=(data.groups == 2).long(), step_size=0.1)
    fit(method)
    assert method.weights.shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step_size": -0.1}, "step_size"),
        ({"step_size": float("nan")}, "step_size"),
        ({"adjustment": -1}, "adjustment"),
        ({"balanced_sampling": 1}, "balanced_sampling"),
        ({"start_epoch": -1}, "start_epoch"),
        ({"start_epoch": 0.5}, "start_epoch"),
    ],
)
def test_refuses_bad_arguments_by_name(arguments, words):
    with pytest.raises(ContractError, match=words):
        GroupDRO(**arguments)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (torch.zeros(N, dtype=torch.int64), "one group only"),
        (torch.arange(N - 1) % 2, rf"{N}"),
        (torch.rand(N), "whole numbers"),
        (-torch.ones(N, dtype=torch.int64), "-1"),
    ],
)
def test_refuses_groups_before_the_first_step(groups, words):
    module = Module()
    with pytest.raises(ContractError, match=words):
        fit(GroupDRO(groups=groups), module=module)
    assert not module.played
