from __future__ import annotations

import csv
import math
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics.classification import BinaryAUROC, MulticlassF1Score

from lightning_robust import ContractError, GroupBalance, GroupDRO, GroupMetrics, Groups
from lightning_robust.callbacks._base import Method
from lightning_robust.callbacks.group_metrics import _Meter
from lightning_robust.sampling import PlanSampler
from lightning_robust.steering import Steer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

NAMES = ("land", "water", "sky", "nowhere")
KEYS = ("acc", "worst_group_acc", "mean_group_acc", "group_gap")


class Grouped(Dataset):
    """Items bring their index along; group 3 has no example, others as ``weights`` say."""

    def __init__(self, n: int, seed: int, weights=(5.0, 2.0, 1.0, 0.0), classes: int = 2) -> None:
        g = torch.Generator().manual_seed(seed)
        self.groups = torch.multinomial(torch.tensor(weights), n, True, generator=g)
        self.group_names = NAMES
        self.targets = torch.randint(classes, (n,), generator=g)
        self.x = torch.randn(n, 4, generator=g)
        self.x[:, 0] += self.targets * (2.0 - self.groups)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.x[index], int(self.targets[index]), index


TRAIN, VAL, TEST = Grouped(37, 0), Grouped(23, 1, (1.0, 1.0, 1.0, 0.0)), Grouped(18, 2)


class Module(LightningModule):
    """Notes (index, predicted class) of every example of every epoch, as its own record."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.head = nn.Linear(4, classes)
        nn.init.uniform_(self.head.weight, -1, 1, generator=g)
        nn.init.uniform_(self.head.bias, -1, 1, generator=g)
        self.seen: dict[str, list[list[tuple[int, int]]]] = {}

    def look(self, stage: str, batch: Any) -> Tensor:
        x, y, index = batch
        z = self.head(x)
        if not self.trainer.sanity_checking:
            pairs = zip(index.tolist(), z.argmax(1).tolist(), strict=True)
            self.seen[stage][-1].extend(pairs)
        return F.cross_entropy(z, y)

    def epoch(self, stage: str) -> None:
        if not self.trainer.sanity_checking:
            self.seen.setdefault(stage, []).append([])

    def on_train_epoch_start(self):
        self.epoch("train")

    def on_validation_epoch_start(self):
        self.epoch("val")

    def on_test_epoch_start(self):
        self.epoch("test")

    def training_step(self, batch, batch_idx):
        return self.look("train", batch)

    def validation_step(self, batch, batch_idx):
        self.look("val", batch)

    def test_step(self, batch, batch_idx):
        self.look("test", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


class Diary(Callback):
    """What was logged after each validation, test and training epoch."""

    def __init__(self) -> None:
        self.logged: dict[str, list[dict[str, float]]] = {"train": [], "val": [], "test": []}

    def note(self, stage: str, trainer: Trainer) -> None:
        if not trainer.sanity_checking:
            self.logged[stage].append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch:
            self.note("train", trainer)

    def on_train_end(self, trainer, module):
        self.note("train", trainer)

    def on_validation_end(self, trainer, module):
        self.note("val", trainer)

    def on_test_end(self, trainer, module):
        self.note("test", trainer)


def a_trainer(*callbacks: Callback, **kwargs) -> Trainer:
    options = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **{**options, **kwargs})


def loader_of(dataset: Dataset, shuffle: bool = False, **kwargs) -> DataLoader:
    return DataLoader(dataset, batch_size=8, shuffle=shuffle, **kwargs)


def by_hand(
    seen: list[tuple[int, int]], dataset: Grouped, training: Grouped | None = None
) -> dict[str, float]:
    """Every value from a list of (index, predicted class), in loops."""
    hits: dict[int, list[bool]] = {}
    for index, predicted in seen:
        right = predicted == int(dataset.targets[index])
        hits.setdefault(int(dataset.groups[index]), []).append(right)
    each = {g: sum(h) / len(h) for g, h in hits.items()}
    values = {
        "acc": sum(map(sum, hits.values())) / len(seen),
        "worst_group_acc": min(each.values()),
        "mean_group_acc": sum(each.values()) / len(each),
        "group_gap": max(each.values()) - min(each.values()),
    }
    for g, name in enumerate(NAMES):
        values[f"group_acc/{name}"] = each.get(g, math.nan)
    if training is not None:
        share = {g: int((training.groups == g).sum()) for g in each}
        values["adjusted_acc"] = sum(share[g] * each[g] for g in each) / sum(share.values())
    return values


def assert_logged(logged: dict[str, float], expected: dict[str, float], stage: str, end="") -> None:
    mine = {key for key in logged if key.startswith(f"{stage}/") and key.endswith(end)}
    assert mine == {f"{stage}/{key}{end}" for key in expected}
    for key, value in expected.items():
        found = logged[f"{stage}/{key}{end}"]
        assert found == pytest.approx(value, abs=1e-6, nan_ok=True), key


# --- against predictions counted by hand ----------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_train_val_and_test_are_what_is_counted_by_hand(workers, shuffle):
    """Last batches are smaller, one group is absent everywhere."""
    module, diary = Module(), Diary()
    trainer = a_trainer(GroupMetrics(), diary)
    # A shuffled validation loader is unusual and must not matter. Two workers run ahead.
    trainer.fit(
        module,
        loader_of(TRAIN, shuffle, num_workers=workers),
        loader_of(VAL, num_workers=workers, persistent_workers=workers > 0),
    )
    trainer.test(module, loader_of(TEST), verbose=False)
    assert [len(epoch) for epoch in module.seen["train"]] == [37, 37]
    for stage, dataset in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        assert len(diary.logged[stage]) == len(module.seen[stage]) == (1 if stage == "test" else 2)
        for logged, seen in zip(diary.logged[stage], module.seen[stage], strict=True):
            assert_logged(logged, by_hand(seen, dataset, TRAIN), stage)


def test_adjusted_accuracy_needs_the_training_groups():
    module, diary = Module(), Diary()
    trainer = a_trainer(GroupMetrics(), diary)
    trainer.validate(module, loader_of(VAL), verbose=False)
    assert_logged(diary.logged["val"][0], by_hand(module.seen["val"][0], VAL), "val")


def test_training_groups_are_matched_by_name():
    """The training set numbers its groups in another order, and has one more."""

    class Renumbered(Grouped):
        def __init__(self) -> None:
            super().__init__(40, 5)
            self.groups = 4 - self.groups
            self.group_names = ("other", *NAMES[::-1])

    module, diary, training = Module(), Diary(), Renumbered()
    trainer = a_trainer(GroupMetrics(), diary, max_epochs=1)
    trainer.fit(module, loader_of(training), loader_of(VAL))
    undone = Grouped(40, 5)
    expected = by_hand(module.seen["val"][0], VAL, undone)
    assert_logged(diary.logged["val"][0], expected, "val")


def test_a_training_set_without_groups_is_left_out():
    module, diary = Module(), Diary()
    trainer = a_trainer(GroupMetrics(), diary, max_epochs=1)
    trainer.fit(module, loader_of(bare_list(TRAIN)), loader_of(VAL))
    assert not any(key.startswith("train/") for key in diary.logged["train"][0])
    assert_logged(diary.logged["val"][0], by_hand(module.seen["val"][0], VAL), "val")


def test_only_the_stages_asked_for_are_measured():
    trainer = a_trainer(GroupMetrics(stages=["val"]), max_epochs=1)
    trainer.fit(Module(), loader_of(TRAIN), loader_of(VAL))
    assert {key.split("/")[0] for key in trainer.callback_metrics} == {"val"}


def test_several_validation_loaders_are_measured_apart():
    class Two(Module):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            z = self.head(batch[0]).argmax(1).tolist()
            if not self.trainer.sanity_checking:
                pairs = zip(batch[2].tolist(), z, strict=True)
                self.seen.setdefault(f"loader {dataloader_idx}", []).extend(pairs)

    module, diary = Two(), Diary()
    trainer = a_trainer(GroupMetrics(), diary, max_epochs=1)
    trainer.fit(module, loader_of(TRAIN), [loader_of(VAL), loader_of(TEST, num_workers=1)])
    for number, dataset in enumerate((VAL, TEST)):
        expected = by_hand(module.seen[f"loader {number}"], dataset, TRAIN)
        assert_logged(diary.logged["val"][0], expected, "val", f"/loader_{number}")


def test_groups_come_from_a_file_with_a_split_column(tmp_path):
    path = tmp_path / "groups.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "place", "colour"])
        for split, dataset in (("train", TRAIN), ("val", VAL), ("test", TEST)):
            for group in dataset.groups.tolist():
                writer.writerow([split, "sea" if group else "land", "red" if group > 1 else "blue"])

    def bare(dataset: Grouped) -> list:
        copy = Grouped(1, 0)
        copy.__dict__.update(vars(dataset))
        del copy.groups, copy.group_names
        return copy

    module, diary = Module(), Diary()
    metrics = GroupMetrics(path, columns=["place", "colour"])
    trainer = a_trainer(metrics, diary, max_epochs=1)
    trainer.fit(module, loader_of(bare(TRAIN), True), loader_of(bare(VAL)))
    expected = by_hand(module.seen["val"][0], VAL, TRAIN)
    logged = diary.logged["val"][0]
    for key in (*KEYS, "adjusted_acc"):
        assert logged[f"val/{key}"] == pytest.approx(expected[key], abs=1e-6)
    accuracies = [v for k, v in logged.items() if k.startswith("val/group_acc/")]
    present = sorted(v for k, v in expected.items() if "group_acc/" in k and v == v)
    assert sorted(accuracies) == pytest.approx(present, abs=1e-6)


def test_groups_come_from_a_mapping_by_split():
    module, diary = Module(), Diary()
    groups = {"val": Groups(VAL.groups.flip(0), NAMES)}
    trainer = a_trainer(GroupMetrics(groups, stages=["train", "val"]), diary, max_epochs=1)
    trainer.fit(module, loader_of(TRAIN), loader_of(VAL))
    flipped = Grouped(23, 1, (1.0, 1.0, 1.0, 0.0))
    flipped.groups = VAL.groups.flip(0)
    assert_logged(diary.logged["val"][0], by_hand(module.seen["val"][0], flipped), "val")
    assert not any(key.startswith("train/") for key in diary.logged["train"][0])


@pytest.mark.parametrize("outputs", [2, 1])
def test_other_metrics_are_computed_per_group(outputs):
    class Scores(Module):
        def validation_step(self, batch, batch_idx):
            z = self.head(batch[0])
            p = z.sigmoid()[:, 0] if outputs == 1 else z.softmax(1)[:, 1]
            if not self.trainer.sanity_checking:
                self.seen["val"][-1] += zip(batch[2].tolist(), p.tolist(), strict=True)

        def training_step(self, batch, batch_idx):
            z = self.head(batch[0])
            if outputs == 1:
                return F.binary_cross_entropy_with_logits(z[:, 0], batch[1].float())
            return F.cross_entropy(z, batch[1])

    module, diary = Scores(outputs), Diary()
    metrics = GroupMetrics(metrics={"auroc": BinaryAUROC()}, stages=["val"])
    trainer = a_trainer(metrics, diary)
    trainer.fit(module, loader_of(TRAIN), loader_of(VAL))
    for logged, seen in zip(diary.logged["val"], module.seen["val"], strict=True):
        each = []
        for group in range(3):
            rows = [(i, p) for i, p in seen if VAL.groups[i] == group]
            targets = [int(VAL.targets[i]) for i, _ in rows]
            each.append(roc_auc_score(targets, [p for _, p in rows]))
            found = logged[f"val/group_auroc/{NAMES[group]}"]
            assert found == pytest.approx(each[-1], abs=1e-6)
        assert math.isnan(logged["val/group_auroc/nowhere"])
        assert logged["val/worst_group_auroc"] == pytest.approx(min(each), abs=1e-6)


def test_a_multiclass_metric_is_computed_per_group():
    training, validation = Grouped(40, 7, classes=3), Grouped(30, 8, classes=3)
    module, diary = Module(3), Diary()
    metrics = GroupMetrics(metrics={"f1": MulticlassF1Score(3, average="macro")}, stages=["val"])
    trainer = a_trainer(metrics, diary, max_epochs=1)
    trainer.fit(module, loader_of(training), loader_of(validation))
    seen = module.seen["val"][0]
    for group in range(3):
        rows = [(i, p) for i, p in seen if validation.groups[i] == group]
        expected = MulticlassF1Score(3, average="macro")(
            torch.tensor([p for _, p in rows]), validation.targets[[i for i, _ in rows]]
        )
        found = diary.logged["val"][0][f"val/group_f1/{NAMES[group]}"]
        assert found == pytest.approx(float(expected), abs=1e-6)


def test_a_group_that_is_absent_from_validation_is_nan_and_moves_nothing():
    lacking = Grouped(20, 9, (1.0, 0.0, 1.0, 0.0))
    module, diary = Module(), Diary()
    trainer = a_trainer(GroupMetrics(), diary, max_epochs=1)
    trainer.fit(module, loader_of(TRAIN), loader_of(lacking))
    expected = by_hand(module.seen["val"][0], lacking, TRAIN)
    assert math.isnan(expected["group_acc/water"])
    assert_logged(diary.logged["val"][0], expected, "val")


# --- in the loop ----------------------------------------------------------------------------------


def test_validation_inside_the_training_epoch_does_not_disturb_the_training_values():
    module, diary = Module(), Diary()
    trainer = a_trainer(GroupMetrics(), diary, val_check_interval=0.5)
    trainer.fit(module, loader_of(TRAIN, True, num_workers=1), loader_of(VAL))
    assert len(diary.logged["val"]) == 4
    for logged, seen in zip(diary.logged["val"], module.seen["val"], strict=True):
        assert_logged(logged, by_hand(seen, VAL, TRAIN), "val")
    for logged, seen in zip(diary.logged["train"], module.seen["train"], strict=True):
        assert_logged(logged, by_hand(seen, TRAIN, TRAIN), "train")


def test_checkpoints_and_early_stopping_follow_the_worst_group(tmp_path):
    best = ModelCheckpoint(
        tmp_path, monitor="val/worst_group_acc", mode="max", auto_insert_metric_name=False
    )
    stop = EarlyStopping(monitor="val/worst_group_acc", mode="max", patience=2, verbose=False)
    module, diary = Module(), Diary()
    trainer = a_trainer(GroupMetrics(), best, stop, diary, max_epochs=30)
    trainer.fit(module, loader_of(TRAIN), loader_of(VAL))
    history = [by_hand(seen, VAL)["worst_group_acc"] for seen in module.seen["val"]]
    assert float(best.best_model_score) == pytest.approx(max(history), abs=1e-6)
    first_best = history.index(max(history))
    assert len(history) == first_best + 3 < 30
    kept = torch.load(best.best_model_path, weights_only=True)
    assert kept["epoch"] == first_best


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_a_resume_in_the_middle_of_an_epoch_counts_what_it_plays(tmp_path):
    class Stop(Exception):
        pass

    class Killed(Module):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.trainer.global_step == 7:
                raise Stop

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    with pytest.raises(Stop):
        a_trainer(GroupMetrics(), keep).fit(Killed(), loader_of(TRAIN), loader_of(VAL))

    class Resumed(Module):
        def on_train_batch_start(self, batch, batch_idx):
            if "train" not in self.seen:  # Lightning calls no on_train_epoch_start here
                self.epoch("train")

    module, diary = Resumed(), Diary()
    again = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    trainer = a_trainer(GroupMetrics(), again, diary)
    checkpoint = str(tmp_path / "epoch=1-step=6.ckpt")
    trainer.fit(module, loader_of(TRAIN), loader_of(VAL), ckpt_path=checkpoint)
    assert len(module.seen["train"]) == 1
    played = module.seen["train"][0]
    assert 0 < len(played) < len(TRAIN)
    assert_logged(diary.logged["train"][-1], by_hand(played, TRAIN, TRAIN), "train")
    assert_logged(diary.logged["val"][-1], by_hand(module.seen["val"][-1], VAL, TRAIN), "val")


class Shifts(Method):
    """Turns every training prediction into class 1."""

    def steer(self, indices: Tensor, logits: Tensor) -> Steer:
        return Steer(shift=torch.tensor([0.0, 100.0]).expand_as(logits))


@pytest.mark.parametrize("sanity_steps", [0, 2])
@pytest.mark.parametrize("first", ["metrics", "methods"])
def test_a_method_that_resamples_and_steers_is_measured_as_the_model_sees_it(first, sanity_steps):
    """Logits are those before steering, whichever callback comes first."""

    class Unsteered(Module):
        def look(self, stage, batch):
            with torch.no_grad():
                z = F.linear(batch[0], self.head.weight, self.head.bias)  # past every hook
            pairs = zip(batch[2].tolist(), z.argmax(1).tolist(), strict=True)
            if self.trainer.training == (stage == "train") and not self.trainer.sanity_checking:
                self.seen[stage][-1].extend(pairs)
            return F.cross_entropy(self.head(batch[0]), batch[1])

    module, diary = Unsteered(), Diary()
    methods = [GroupDRO(step_size=1.0, balanced_sampling=True), Shifts()]
    metrics = [GroupMetrics()]
    both = [*metrics, *methods] if first == "metrics" else [*methods, *metrics]
    trainer = a_trainer(*both, diary, num_sanity_val_steps=sanity_steps)
    trainer.fit(module, loader_of(TRAIN, True), loader_of(VAL))
    assert len(set(module.seen["train"][0])) < len(TRAIN)  # drawn with replacement
    for stage, dataset in (("train", TRAIN), ("val", VAL)):
        for logged, seen in zip(diary.logged[stage], module.seen[stage], strict=True):
            expected = by_hand(seen, dataset, TRAIN)
            mine = {k: v for k, v in logged.items() if not k.startswith("group_dro")}
            assert_logged(mine, expected, stage)


def test_training_is_bit_for_bit_the_one_without_metrics():
    def run(*callbacks: Callback) -> Tensor:
        torch.manual_seed(0)
        module = Module()
        a_trainer(*callbacks).fit(module, loader_of(TRAIN, True), loader_of(VAL))
        return module.head.weight.detach()

    assert torch.equal(run(GroupMetrics()), run())


def test_everything_is_left_as_found_also_after_an_error():
    class Fails(Module):
        def validation_step(self, batch, batch_idx):
            raise OSError

    train, val = loader_of(TRAIN, True), loader_of(VAL)
    before = [vars(loader).copy() for loader in (train, val)]
    module, metrics = Module(), GroupMetrics()
    trainer = a_trainer(metrics)
    trainer.fit(module, train, val)
    failing = Fails()
    with pytest.raises(OSError):  # noqa: PT011
        a_trainer(metrics).fit(failing, train, val)
    for loader, state in zip((train, val), before, strict=True):
        for key in state.keys() - {"_iterator"}:
            assert vars(loader)[key] is state[key], key
    assert not module.head._forward_hooks
    assert not failing.head._forward_hooks
    assert "process_dataloader" not in vars(trainer.strategy)
    a_trainer(metrics).fit(Module(), train, val)  # and works again


# --- several processes ----------------------------------------------------------------------------


class TwoProcesses(Callback):
    """Compares, on both ranks, with what both ranks' modules noted; repeated examples go once."""

    def __init__(self, path, datasets: dict[str, Grouped]) -> None:
        self.path, self.datasets = path, datasets
        self.errors: dict[str, float] = {}

    def compare(self, stage: str, trainer: Trainer, module: Module) -> None:
        if trainer.sanity_checking:
            return
        both: list[Any] = [None, None]
        torch.distributed.all_gather_object(both, module.seen[stage][-1])
        played = [pair for turn in zip(*both, strict=True) for pair in turn]
        once = played[: len(self.datasets[stage])]  # padding is what comes after
        assert len({i for i, _ in once}) == len(once) == len(self.datasets[stage])
        assert len(played) > len(once)
        self.errors[f"repeats {stage}"] = len(played) - len(once)
        expected = by_hand(once, self.datasets[stage], self.datasets["train"])
        for key, value in expected.items():
            found = float(trainer.callback_metrics[f"{stage}/{key}"])
            error = 0.0 if math.isnan(found) and math.isnan(value) else abs(found - value)
            self.errors[f"{stage}/{key}"] = max(error, self.errors.get(f"{stage}/{key}", 0.0))
        gathered: list[Any] = [None, None]
        torch.distributed.all_gather_object(gathered, self.errors)
        torch.save({k: max(e[k] for e in gathered) for k in self.errors}, self.path)

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch:
            # what was logged at the end of the epoch; the module has opened no new one yet
            self.compare("train", trainer, module)

    def on_validation_end(self, trainer, module):
        self.compare("val", trainer, module)

    def on_test_end(self, trainer, module):
        self.compare("test", trainer, module)


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_processes_count_every_example_once(tmp_path, shuffle):
    """All three sizes are odd, and the second rank lacks groups in most batches."""
    datasets = {"train": TRAIN, "val": VAL, "test": Grouped(19, 2)}
    compare = TwoProcesses(tmp_path / "errors.pt", datasets)
    trainer = a_trainer(GroupMetrics(), compare, strategy="ddp_fork", devices=2, max_epochs=3)
    trainer.fit(Module(), loader_of(TRAIN, shuffle), loader_of(VAL))
    errors = torch.load(compare.path)
    assert errors["repeats train"] == errors["repeats val"] == 1
    assert {key.split("/")[0] for key in errors} >= {"train", "val"}
    assert max(v for k, v in errors.items() if not k.startswith("repeats")) < 1e-6


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_two_processes_test_every_example_once(tmp_path):
    datasets = {"train": TRAIN, "test": Grouped(19, 2)}
    compare = TwoProcesses(tmp_path / "errors.pt", datasets)

    metrics = GroupMetrics()
    metrics._training_groups = Groups(TRAIN.groups, NAMES)  # as after a fit
    trainer = a_trainer(metrics, compare, strategy="ddp_fork", devices=2)
    trainer.test(Module(), loader_of(datasets["test"]), verbose=False)
    errors = torch.load(compare.path)
    assert errors.pop("repeats test") == 1
    assert len(errors) == 9
    assert max(errors.values()) < 1e-6


@pytest.mark.parametrize("rank", [0, 1])
def test_a_resume_in_the_middle_of_an_epoch_knows_where_the_padding_is(rank):
    class OnRank(PlanSampler):
        num_replicas = 2

    OnRank.rank = rank
    sampler = OnRank(len(TRAIN), batch_size=4)
    sampler.resume(epoch=0, batches_played=3)
    loader = DataLoader(TRAIN, batch_size=4, sampler=sampler)
    meter = _Meter("train", loader, TRAIN.targets, Groups(TRAIN.groups, NAMES), {})
    meter.reset(None, torch.device("cpu"))
    seen = []
    for _, targets, indices in loader:
        meter.update(F.one_hot(targets).float())
        seen += indices.tolist()
    assert len(seen) == 19 - 12
    counted = seen[: len(seen) - rank]  # 37 examples for 38 places: the last is padding
    values = meter.compute()
    for group in range(3):
        present = any(TRAIN.groups[i] == group for i in counted)
        assert values[f"group_acc/{NAMES[group]}"].isnan().item() is not present
    assert int(meter._counts.total.sum()) == len(counted)


# --- refusing -------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter([TRAIN[i] for i in range(8)])


def bare_list(dataset: Grouped) -> list:
    return [dataset[i] for i in range(len(dataset))]


@pytest.mark.parametrize(
    ("metrics", "val", "words"),
    [
        ({}, DataLoader(bare_list(VAL), batch_size=8), "groups"),
        ({}, DataLoader(Stream(), batch_size=8), "val loader's Stream.*stages="),
        ({"groups": {"val": VAL.groups[:-1]}}, loader_of(VAL), "23"),
        ({"head": "tail"}, loader_of(VAL), "head='tail'"),
        ({"groups": {"train": TRAIN.groups}}, loader_of(VAL), "val"),
    ],
)
def test_refuses_before_the_first_step(metrics, val, words):
    class NeverTrained(Module):
        def training_step(self, batch, batch_idx):
            pytest.fail("a step was made")

    with pytest.raises(ContractError, match=words):
        a_trainer(GroupMetrics(**metrics)).fit(NeverTrained(), loader_of(TRAIN), val)


def test_refuses_stages_it_does_not_know():
    with pytest.raises(ContractError, match=r"stages.*validation"):
        GroupMetrics(stages=["validation"])


def test_refuses_a_step_in_which_the_head_does_not_run():
    class Ensemble(Module):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(4, 7)

    with pytest.raises(ContractError, match=r"did not run in the val step.*head="):
        a_trainer(GroupMetrics(head="other")).fit(Ensemble(), loader_of(TRAIN), loader_of(VAL))


@pytest.mark.parametrize("sanity_steps", [0, 2])
@pytest.mark.parametrize("callback", [GroupMetrics, GroupBalance])
def test_refuses_the_same_loader_for_training_and_validation(callback, sanity_steps):
    """Their counts would be mixed, or the validation set resampled."""

    class NeverTrained(Module):
        def training_step(self, batch, batch_idx):
            pytest.fail("a step was made")

    loader = loader_of(TRAIN)
    trainer = a_trainer(callback(), num_sanity_val_steps=sanity_steps)
    with pytest.raises(ContractError, match="two DataLoaders"):
        trainer.fit(NeverTrained(), loader, loader)


def test_refuses_to_measure_several_training_loaders_at_once():
    class Both(Module):
        def training_step(self, batch, batch_idx):
            pytest.fail("a step was made")

    loaders = {"a": loader_of(TRAIN), "b": loader_of(VAL)}
    with pytest.raises(ContractError, match="stages="):
        a_trainer(GroupMetrics()).fit(Both(), loaders)


def test_the_groups_measured_last_are_drawn():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    metrics = GroupMetrics()
    with pytest.raises(ContractError, match="has not been measured"):
        metrics.plot()
    trainer = a_trainer(metrics)
    trainer.fit(Module(), loader_of(TRAIN), loader_of(VAL))
    figure, axis = metrics.plot("val")
    assert [tick.get_text() for tick in axis.get_yticklabels()] == list(NAMES)
    logged = trainer.callback_metrics
    for name, bar, text in zip(NAMES, axis.patches, axis.texts, strict=True):
        value = float(logged[f"val/group_acc/{name}"])
        assert bar.get_width() == pytest.approx(0 if math.isnan(value) else value)
        worst = value == float(logged["val/worst_group_acc"])
        assert text.get_text().endswith("(worst)") == worst
    pyplot.close(figure)
