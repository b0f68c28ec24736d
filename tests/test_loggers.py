"""Loggers: each is sent the same keys and keeps all of them, whatever the groups are called."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_robust import SPARE, GroupDRO, GroupMetrics
from lightning_robust.contracts import names_in_keys
from lightning_robust.models import Classifier

# As they come of two columns of a file, of a text and its tags, and of whoever named them.
NAMES = ("y=0,place=sea", "toxic: male, black", "on land (new)/50 %", "nowhere")


class Rows(Dataset):
    """A group of these has no example, so that its accuracy is NaN."""

    group_names = NAMES

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(36, 3, generator=g)
        self.groups, self.targets = torch.arange(36) % 3, torch.arange(36) % 2

    def __len__(self) -> int:
        return 36

    def __getitem__(self, index: int):
        return self.x[index], int(self.targets[index])


def fit(logger, folder: Path) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=3,
        log_every_n_steps=1,
        callbacks=[SPARE(separation_epoch=1, num_clusters=2), GroupDRO(), GroupMetrics()],
        logger=logger,
        accelerator="cpu",
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(Rows(), batch_size=12, shuffle=True), DataLoader(Rows(), batch_size=12)
    trainer.fit(Classifier(nn.Linear(3, 2)), *loaders)
    for one in trainer.loggers:
        one.finalize("success")
    return trainer


def csv_keys(folder: Path) -> set[str]:
    logger = CSVLogger(folder)
    fit(logger, folder)
    with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
        return {*next(csv.reader(file))} - {"step"}


def tensorboard_keys(folder: Path) -> set[str]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(folder, default_hp_metric=False)
    fit(logger, folder)
    return {*EventAccumulator(logger.log_dir).Reload().Tags()["scalars"]}


def mlflow_keys(folder: Path) -> set[str]:
    pytest.importorskip("mlflow")
    logger = MLFlowLogger(tracking_uri=f"file:{folder}")
    fit(logger, folder)
    return {*logger.experiment.get_run(logger.run_id).data.metrics}


def wandb_keys(folder: Path) -> set[str]:
    wandb = pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=folder, offline=True)
    fit(logger, folder)
    keys = {*logger.experiment.summary.keys()}
    wandb.finish()
    return {key for key in keys if not key.startswith("_")} - {"trainer/global_step"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # loggers' own
@pytest.mark.parametrize("recorded", [csv_keys, tensorboard_keys, mlflow_keys, wandb_keys])
def test_each_logger_keeps_the_same_keys(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    accuracies = ["acc", "worst_group_acc", "mean_group_acc", "adjusted_acc", "group_gap"]
    names = ["y_0_place_sea", "toxic_male_black", "on land_new_/50_", "nowhere"]
    accuracies += [f"group_acc/{name}" for name in names]
    expected = {f"{stage}/{key}" for stage in ("train", "val") for key in accuracies}
    expected |= {f"group_dro/weight/{name}" for name in names}
    expected |= {"epoch", "train/loss", "val/loss"}
    expected |= {f"spare/{word}/{c}" for word in ("silhouette", "num_clusters") for c in (0, 1)}
    assert recorded(tmp_path) == expected


def test_names_that_become_the_same_are_numbered():
    assert names_in_keys(["a, b", "a=b", "c"]) == ["0_a_b", "1_a_b", "2_c"]
