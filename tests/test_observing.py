from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust import observing
from lightning_robust.contracts import ContractError
from lightning_robust.observing import Observation, Observer, undisturbed
from lightning_robust.randomness import global_state
from lightning_robust.steering import HeadHook, find_head

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

N, CLASSES = 21, 3
EVERYTHING = ("logits", "features", "losses", "gradients")


class Blobs(Dataset):
    """Random points; ``noisy`` adds an augmentation drawn from the global generators."""

    def __init__(self, n: int = N, noisy: bool = False) -> None:
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 6, generator=g)
        self.targets = torch.arange(n) % CLASSES
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self.x[index]
        if self.noisy:
            x = x + torch.randn(6) + random.random() + float(np.random.rand())
        return x, int(self.targets[index])


class Net(nn.Module):
    """With everything that differs between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, CLASSES)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1, 1, generator=g)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class During(Callback):
    """Calls ``act(observer)`` at one place of a running fit."""

    def __init__(self, act: Callable[[Observer], None], hook: str = "on_train_epoch_end") -> None:
        self.act = act
        self.calls = 0
        setattr(self, hook, self._call)

    def _call(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        hook = HeadHook(find_head(module, CLASSES)[1])
        with hook:
            self.act(Observer(trainer, module, hook, trainer.train_dataloader))
        self.calls += 1


def fit(module: LightningModule, callback: Callback | None, dataset=None, *, loader=None, **kwargs):
    options = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if loader is None:
        loader = DataLoader(
            dataset or Blobs(),
            batch_size=4,
            drop_last=True,  # BatchNorm cannot train on the one example that is left
            shuffle=True,
            generator=torch.Generator().manual_seed(5),
        )
    trainer = Trainer(callbacks=[callback] if callback else [], **{**options, **kwargs})
    trainer.fit(module, loader)
    return trainer


def observe(module, *quantities, dataset=None, observed=None, loader=None, **kwargs) -> Observation:
    """Observe at the end of the first epoch."""
    found = []
    dataset = dataset or Blobs()

    def act(observer: Observer) -> None:
        shown = observed or dataset
        found.append(observer(shown, shown.targets, quantities or EVERYTHING))

    fit(module, During(act), dataset, loader=loader, **kwargs)
    return found[0]


def by_a_loop(net: nn.Module, dataset: Blobs) -> dict[str, Tensor]:
    """One example at a time, in evaluation mode; gradients by autograd."""
    net.eval()
    rows: dict[str, list[Tensor]] = {name: [] for name in EVERYTHING}
    for i in range(len(dataset)):
        x, y = dataset.x[i : i + 1], dataset.targets[i : i + 1]
        features = net.body(x)
        logits = net.head(features).detach().requires_grad_()
        loss = F.cross_entropy(logits, y)
        (gradient,) = torch.autograd.grad(loss, logits)
        for name, value in zip(
            EVERYTHING, (logits[0], features[0], loss, gradient[0]), strict=True
        ):
            rows[name].append(value.detach())
    net.train()
    return {name: torch.stack(values) for name, values in rows.items()}


def assert_equals_the_loop(found: Observation, net: nn.Module, dataset: Blobs, **tolerance) -> None:
    tolerance = {"rtol": 1e-5, "atol": 1e-5} | tolerance
    for name, expected in by_a_loop(net, dataset).items():
        values = getattr(found, name)
        assert values.shape == expected.shape
        assert values.device.type == "cpu"
        assert torch.allclose(values.float(), expected, **tolerance), name


# --- what is seen ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 5, 20, 100], ids=lambda b: f"batches of {b}")
def test_sees_what_a_plain_loop_sees(batch_size):
    """With n = 21 the last batch has one example (20), or is the whole set (100)."""
    module, dataset, found = Plain(), Blobs(), []
    fit(
        module,
        During(
            lambda o: found.append(o(dataset, dataset.targets, EVERYTHING, batch_size=batch_size))
        ),
    )
    assert_equals_the_loop(found[0], module.net, dataset)


def test_sees_only_what_was_asked_for():
    found = observe(Plain(), "losses")
    assert found.losses.shape == (N,)
    assert found.logits is found.features is found.gradients is None


def test_a_bar_is_shown_once_it_takes_long(monkeypatch, capsys):
    """And tqdm, whose lock forked processes share, is left alone before."""
    monkeypatch.setattr(observing, "_SECONDS_BEFORE_A_BAR", -1.0)
    observe(Plain(), "losses")
    assert "observing the training set" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(observing, "tqdm", None)
    observe(Plain(), "losses")
    assert "observing the training set" not in capsys.readouterr().err


def test_a_shuffled_loader_with_workers_is_seen_in_dataset_order():
    module, dataset = Plain(), Blobs()
    loader = DataLoader(dataset, batch_size=7, shuffle=True, num_workers=2)
    assert_equals_the_loop(observe(module, loader=loader), module.net, dataset)


def test_a_clean_view_is_seen_instead_of_the_augmented_one():
    module, noisy, clean = Plain(), Blobs(noisy=True), Blobs()
    found = observe(module, dataset=noisy, observed=clean)
    assert_equals_the_loop(found, module.net, clean)


def test_a_smaller_data_set_of_another_size_may_be_seen():
    module, other = Plain(), Blobs(5)
    assert_equals_the_loop(observe(module, observed=other), module.net, other)


def test_the_trainers_precision_is_used():
    module, seen = Plain(), []

    class Spy(HeadHook):
        def _hook(self, head, inputs, output):
            if self.readers:
                seen.append(output.dtype)
            return super()._hook(head, inputs, output)

    def act(observer: Observer) -> None:
        spy = Spy(observer.hook.head)
        with spy:
            dataset = Blobs()
            found.append(
                Observer(observer.trainer, observer.module, spy, observer.loader)(
                    dataset, dataset.targets, EVERYTHING
                )
            )

    found: list[Observation] = []
    fit(module, During(act), precision="bf16-mixed")
    assert set(seen) == {torch.bfloat16}
    assert found[0].logits.dtype == torch.float32
    assert_equals_the_loop(found[0], module.net, Blobs(), rtol=0.05, atol=0.05)


def test_half_the_memory_on_request():
    module, dataset, found = Plain(), Blobs(), []
    fit(
        module,
        During(
            lambda o: found.append(o(dataset, dataset.targets, EVERYTHING, dtype=torch.float16))
        ),
    )
    assert found[0].logits.dtype == found[0].losses.dtype == torch.float16
    assert_equals_the_loop(found[0], module.net, dataset, rtol=2e-3, atol=2e-3)


def test_losses_of_confident_logits_are_taken_before_rounding():
    """float16 ends at 65504, and cross-entropy of rounded logits would be off."""
    module = Plain()
    found = []

    def act(observer: Observer) -> None:
        with torch.no_grad():
            module.net.head.weight.mul_(300.0)
        dataset = Blobs()
        found.append(observer(dataset, dataset.targets, ("losses",), dtype=torch.float16))
        found.append(by_a_loop(module.net, dataset)["losses"])

    fit(module, During(act))
    assert torch.allclose(found[0].losses.float(), found[1], rtol=1e-3, atol=1e-3)


class DictBatches(Plain):
    """Batches are dicts, converted by the module's own hooks; the loss is written by hand."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "image": batch["image"] / 2}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "image": batch["image"] + 1}

    def training_step(self, batch):
        z = self.net(batch["image"])
        return -(z.log_softmax(1) * F.one_hot(batch["label"], CLASSES)).sum(1).mean()


class AsDicts(Blobs):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return {"image": x, "label": y}


def test_batches_pass_through_the_modules_own_hooks():
    module = DictBatches()
    found = observe(module, dataset=AsDicts())
    shown = Blobs()
    shown.x = shown.x / 2 + 1
    assert_equals_the_loop(found, module.net, shown)


class Manual(Plain):
    """Manual optimisation that touches gradients and ``requires_grad`` before the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(2, 2)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        first.zero_grad()
        second.zero_grad()
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.net.parameters(), lr=0.1),
            torch.optim.SGD(self.other.parameters(), lr=0.1),
        ]


def test_manual_optimisation_is_observed_and_undisturbed():
    module = Manual()
    before = []

    def act(observer: Observer) -> None:
        module.other.weight.grad = torch.ones(2, 2)
        module.other.bias.requires_grad_(False)
        before.append(everything_of(module))
        dataset = Blobs()
        found.append(observer(dataset, dataset.targets, EVERYTHING))
        before.append(everything_of(module))

    found: list[Observation] = []
    fit(module, During(act))
    assert_equals_the_loop(found[0], module.net, Blobs())
    assert_same(*before)


# --- quiet ----------------------------------------------------------------------------------------


def everything_of(module: LightningModule) -> dict[str, Any]:
    return {
        "modes": [child.training for child in module.modules()],
        "parameters": [p.detach().clone() for p in module.parameters()],
        "buffers": [b.detach().clone() for b in module.buffers()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "random": global_state(),
        "stage": module.trainer.state.stage,
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "log": "log" in vars(module),
        "hooks": [len(child._forward_hooks) for child in module.modules()],
    }


def assert_same(before: Any, after: Any, path: str = "") -> None:
    assert type(before) is type(after), path
    if isinstance(before, Tensor):
        assert torch.equal(before.nan_to_num(-1), after.nan_to_num(-1)), path
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key], f"{path}/{key}")
    elif isinstance(before, list):
        assert len(before) == len(after), path
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            assert_same(one, other, f"{path}/{i}")
    else:
        assert before == after, path


class Noisy(Plain):
    """Draws, counts in a buffer, freezes and thaws, switches modes: all before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.steps += 1
        self.net.body[3].train()  # a module that switches its own modes
        x = x + torch.randn_like(x) + random.random() + float(np.random.rand())
        return F.cross_entropy(self.net(x), y)


class Breaks(Dataset):
    """Its last example cannot be read."""

    targets = torch.zeros(9, dtype=torch.int64)

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int):
        torch.rand(1)
        if index == 8:
            raise OSError("the disk is gone")
        return torch.zeros(6), 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_as_found_afterwards_also_when_it_raises(raises, precision):
    """In the middle of gradient accumulation, on an augmented data set."""
    module = Noisy()
    states = []

    def act(observer: Observer) -> None:
        module.net.body[3].eval()
        module.net.body[0].bias.requires_grad_(False)
        states.append(everything_of(module))
        dataset = Breaks() if raises else Blobs(noisy=True)
        if raises:
            with pytest.raises(OSError, match="disk"):
                observer(dataset, dataset.targets, EVERYTHING)
        else:
            observer(dataset, dataset.targets, EVERYTHING)
        states.append(everything_of(module))

    callback = During(act, "on_train_batch_end")
    fit(module, callback, accumulate_grad_batches=3, precision=precision)
    assert callback.calls == 5
    for before, after in zip(states[::2], states[1::2], strict=True):
        assert_same(before, after)
    accumulated = [any(g is not None for g in state["gradients"]) for state in states[::2]]
    assert any(accumulated)  # gradients that had to survive


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_start", "on_train_epoch_end"])
def test_a_fit_with_observations_ends_where_one_without_ends(hook):
    def run(callback: Callback | None) -> LightningModule:
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        module = Noisy()
        fit(module, callback, Blobs(noisy=True), max_epochs=2, accumulate_grad_batches=2)
        return module

    dataset = Blobs(noisy=True)
    with_observations = run(During(lambda o: o(dataset, dataset.targets, EVERYTHING), hook))
    without = run(None)
    for expected, found in zip(
        without.state_dict().values(), with_observations.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, found)


def test_nothing_is_logged_and_nothing_after_the_head_runs():
    class Talkative(Plain):
        after_the_head = 0

        def training_step(self, batch, batch_idx):
            z = self.net(batch[0])
            self.after_the_head += 1
            self.log("mean", z.mean())
            return F.cross_entropy(z, batch[1])

    class LogsFirst(Talkative):
        def training_step(self, batch, batch_idx):
            self.log("x", batch[0].mean())
            self.log_dict({"y": 1.0, "stage": float(self.trainer.training)})
            return super().training_step(batch, batch_idx)

    module = LogsFirst()
    metrics = []

    def act(observer: Observer) -> None:
        before = dict(observer.trainer.callback_metrics)
        dataset = Blobs()
        observer(dataset, dataset.targets, ("logits",))
        metrics.append((before, dict(observer.trainer.callback_metrics)))

    fit(module, During(act, "on_train_batch_end"))
    assert module.after_the_head == 5
    for before, after in metrics:
        assert_same(before, after)
    assert module.trainer.callback_metrics["stage"] == 1.0


def test_undisturbed_is_in_evaluation_mode_without_gradient_also_within_inference_mode():
    module = Plain()

    def act(observer: Observer) -> None:
        with torch.inference_mode(), undisturbed(observer.trainer, module):
            assert not module.net.training
            assert not torch.is_grad_enabled()
            assert not torch.ones(1).is_inference()
            assert observer.trainer.validating

    callback = During(act)
    fit(module, callback)
    assert callback.calls == 1
    assert module.net.training


# --- which head runs ------------------------------------------------------------------------------


class Heads(LightningModule):
    def __init__(self, wiring: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.wiring = wiring
        for name in ("a", "b", "unused"):
            setattr(self, name, nn.Linear(6 if name == "a" else CLASSES, CLASSES))
        self.parallel = nn.Linear(6, CLASSES)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.wiring(self, batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("wiring", "last"),
    [
        (lambda m, x: m.b(m.a(x)), "b"),
        (lambda m, x: m.b(m.a(x).relu()) * 2, "b"),
        (lambda m, x: m.a(x), "a"),
        (lambda m, x: m.b(m.b(m.a(x))), "b"),
        (lambda m, x: m.parallel(x) + m.a(x), None),
        (lambda m, x: m.b(m.a(x)) + m.parallel(x), None),
        (lambda m, x: m.b(m.a(x) + m.parallel(x)), "b"),
        (lambda m, x: x[:, :CLASSES].clone().requires_grad_(), None),
    ],
    ids=["chain", "relu", "one", "twice", "parallel", "chain beside", "joined", "none"],
)
def test_the_last_head_that_depends_on_all_before_it_is_found(wiring, last):
    module = Heads(wiring)
    found = []
    before = {}

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            before.update(everything_of(module))
            observer = Observer(trainer, module, HeadHook(nn.Identity()), trainer.train_dataloader)
            heads = {name: getattr(module, name) for name in ("parallel", "a", "unused", "b")}
            found.append(observer.last_to_run(Blobs(noisy=True), heads))
            assert_same(before, everything_of(module))

    fit(module, Look())
    assert found == [last]


def test_a_chain_of_two_candidates_is_found_in_a_whole_fit_and_parallel_heads_are_refused():
    from lightning_robust import GroupMetrics

    dataset = Blobs()
    dataset.groups = dataset.targets
    module = Heads(lambda m, x: m.b(m.a(x)))
    fit(module, GroupMetrics(), dataset)
    assert "train/worst_group_acc" in module.trainer.callback_metrics
    with pytest.raises(ContractError, match=r"ambiguous: a, b, unused, parallel"):
        fit(Heads(lambda m, x: m.a(x) + m.parallel(x)), GroupMetrics(), dataset)


# --- refusing -------------------------------------------------------------------------------------


def test_refuses_logits_that_are_not_finite_and_names_the_example():
    broken = Blobs()
    broken.x[13] = float("nan")
    with pytest.raises(ContractError, match=r"example 13 .*NaN"):
        observe(Plain(), observed=broken)
    broken.x[13] = float("inf")
    with pytest.raises(ContractError, match="example 13"):
        observe(Plain(), "losses", observed=broken)


def test_refuses_a_collate_function_that_drops_examples():
    def drop_one(items):
        return torch.utils.data.default_collate(items[1:])

    loader = DataLoader(Blobs(20), batch_size=4, collate_fn=drop_one)
    with pytest.raises(ContractError, match="3 rows for 4 examples"):
        observe(Plain(), observed=Blobs(20), loader=loader)


def test_refuses_a_head_that_does_not_run():
    module = Plain()
    module.other = nn.Linear(6, 4)

    def act(observer: Observer) -> None:
        with HeadHook(module.other) as hook:
            dataset = Blobs()
            Observer(observer.trainer, module, hook, observer.loader)(
                dataset, dataset.targets, ("logits",)
            )

    with pytest.raises(ContractError, match=r"did not run in training_step.*head="):
        fit(module, During(act))


def test_refuses_quantities_it_does_not_know():
    with pytest.raises(ContractError, match=r"\['feature'\].*features"):
        observe(Plain(), "logits", "feature")


# --- several processes ----------------------------------------------------------------------------


class SeenByRank(Callback):
    """Compares on every rank; the main process gets the largest error back.

    Running statistics differ between ranks at that point: the first rank's are what counts, as in
    a checkpoint.
    """

    def on_train_epoch_end(self, trainer, module):
        dataset = Blobs()
        mine = [buffer.clone() for buffer in module.buffers()]
        with HeadHook(module.net.head) as hook:
            seen = Observer(trainer, module, hook, trainer.train_dataloader)(
                dataset, dataset.targets, EVERYTHING
            )
        kept = all(map(torch.equal, mine, module.buffers()))
        module.log("kept", float(kept), sync_dist=True, reduce_fx="min")
        first = trainer.strategy.broadcast(mine)
        differ = max(float((a - b).abs().max()) for a, b in zip(mine, first, strict=True))
        module.log("differ", differ, sync_dist=True, reduce_fx="max")
        for buffer, values in zip(module.buffers(), first, strict=True):
            buffer.copy_(values)
        expected = by_a_loop(module.net, dataset)
        error = max((getattr(seen, name) - expected[name]).abs().max() for name in EVERYTHING)
        module.log("error", error, sync_dist=True, reduce_fx="max")
        tiny = Blobs(1)  # the second rank has no example
        with HeadHook(module.net.head) as hook:
            seen = Observer(trainer, module, hook, trainer.train_dataloader)(
                tiny, tiny.targets, EVERYTHING
            )
        expected = by_a_loop(module.net, tiny)
        error = max((getattr(seen, name) - expected[name]).abs().max() for name in EVERYTHING)
        module.log("error of one", error, sync_dist=True, reduce_fx="max")


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_two_processes_see_the_same_in_dataset_order():
    trainer = fit(Plain(), SeenByRank(), strategy="ddp_fork", devices=2)
    assert trainer.callback_metrics["kept"] == 1
    assert trainer.callback_metrics["differ"] > 1e-3
    assert trainer.callback_metrics["error"] < 1e-5
    assert trainer.callback_metrics["error of one"] < 1e-5
