"""RepresentationMonitor and its metrics against the pure functions on the whole validation set."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Subset,
)

from lightning_robust import AnnotatedDataset, ContractError, GroupMetrics, RepresentationMonitor
from lightning_robust.callbacks.representation_monitor import _Meter
from lightning_robust.functional import representation as measures
from lightning_robust.representation import Selectivity

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, TARGETS = random(23, 4), torch.arange(23) % 3
BIAS = torch.where(random(23, seed=1) > 0, TARGETS, (TARGETS + 1) % 3)
VAL = AnnotatedDataset(
    [(x, int(y)) for x, y in zip(X, TARGETS, strict=True)], targets=TARGETS, groups=BIAS
)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(4, 20), nn.ReLU())
        self.head = nn.Linear(20, 3)

    def step(self, batch):
        return F.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.step(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2)


def a_trainer(*callbacks, **settings) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        **quiet,
        **settings,
    )


def expected(module: Module) -> dict[str, float]:
    with torch.no_grad():
        features = module.body(X)
        logits = module.head(features)
        losses = F.cross_entropy(logits, TARGETS, reduction="none")
        values = {
            "sparsity": measures.sparsity(features).mean(),
            "compressibility": measures.compressibility(features).mean(),
            "class_separation": measures.class_separation(features, TARGETS),
            "class_selectivity": measures.selectivity(features, TARGETS).mean(),
            "bias_selectivity": measures.selectivity(features, BIAS).mean(),
            "conflicting_loss_ratio": measures.conflicting_loss_ratio(losses, BIAS != TARGETS),
            "logit_norm": measures.logit_norm(logits).mean(),
            "weight_norm": measures.weight_norm(module),
        }
    return {f"representation/{name}": float(value) for name, value in values.items()}


def loader_of(shuffle: bool = False, **settings) -> DataLoader:
    return DataLoader(VAL, batch_size=8, shuffle=shuffle, **settings)


@pytest.mark.parametrize("workers", [0, 1])
def test_logs_what_the_functions_say_of_the_whole_set(workers):
    """Also beside GroupMetrics, which reads the same loader, and where that is shuffled."""
    module = Module()
    trainer = a_trainer(RepresentationMonitor(BIAS), GroupMetrics(stages=["val"]))
    trainer.fit(module, loader_of(), loader_of(shuffle=True, num_workers=workers))
    logged = {k: float(v) for k, v in trainer.callback_metrics.items() if "val/" not in k}
    assert logged == pytest.approx(expected(module), rel=1e-4)
    assert "val/worst_group_acc" in trainer.callback_metrics


def test_without_attributes_nothing_is_said_of_the_bias():
    module = Module()
    trainer = a_trainer(RepresentationMonitor(kappa=0.3))
    [logged] = trainer.validate(module, loader_of(), verbose=False)
    without = {key for key in expected(module) if "bias" not in key and "conflicting" not in key}
    assert set(logged) == without
    with torch.no_grad():
        compressible = measures.compressibility(module.body(X), kappa=0.3).mean()
    assert logged["representation/compressibility"] == pytest.approx(float(compressible))


def test_several_loaders_are_told_apart():
    module = Module()
    trainer = a_trainer(RepresentationMonitor(BIAS))
    trainer.validate(module, [loader_of(), loader_of()], verbose=False)
    for key, value in expected(module).items():
        for number in range(2):
            found = float(trainer.callback_metrics[f"{key}/loader_{number}"])
            assert found == pytest.approx(value, rel=1e-4)


def test_examples_repeated_to_fill_up_ranks_count_once_and_ranks_add_up():
    """23 examples on 2 ranks: one is seen twice."""
    module, meters = Module(), []
    for rank in range(2):
        sampler = DistributedSampler(VAL, 2, rank, shuffle=False)
        loader = DataLoader(VAL, batch_sampler=BatchSampler(sampler, 4, drop_last=False))
        meters.append(_Meter(loader, TARGETS, BIAS, 2.0, 0.1))
        with torch.no_grad():
            for x, _ in loader:
                features = module.body(x)
                meters[-1].update(features, module.head(features))
    one, other = (meter._metrics for meter in meters)
    for name, metric in one.items():
        for state in metric._defaults:
            added = getattr(metric, state) + getattr(other[name], state)
            setattr(metric, state, added)
            assert metric._reductions[state] is not None
    one.pop("logit_norm")  # torchmetrics' own mean, whose weights add up likewise
    found = {f"representation/{name}": float(metric.compute()) for name, metric in one.items()}
    whole = expected(module)
    assert found == pytest.approx({key: whole[key] for key in found}, rel=1e-4)


def monitored(**settings) -> dict[str, float]:
    """What two epochs log; Lightning shuffles on two ranks, but the one batch holds all."""
    train = DataLoader(Subset(VAL, range(16)), batch_size=16 // settings.get("devices", 1))
    val = DataLoader(VAL, batch_size=8 // settings.get("devices", 1))
    trainer = a_trainer(RepresentationMonitor(BIAS), **settings)
    trainer.fit(module := Module(), train, val)
    logged = {k: float(v) for k, v in trainer.callback_metrics.items()}
    return logged | {"first weight": float(module.head.weight.detach()[0, 0])}


RANK = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from test_representation_monitor import monitored
torch.save(monitored(devices=2, strategy="ddp"), sys.argv[2])
"""


def test_two_processes_log_what_one_logs(tmp_path):
    """After training that is the same, too; of 23 validation examples one is seen twice."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    paths = [str(Path(__file__).parents[2]), *sys.path]
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    common |= {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    files = [tmp_path / f"{rank}.pt" for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(Path(__file__).parent), str(file)],
            env=os.environ | common | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=300)
        assert rank.returncode == 0, output
    first, second = (torch.load(file, weights_only=True) for file in files)
    assert first == second
    assert len(first) == 9
    assert first == pytest.approx(monitored(), rel=1e-4)


def test_refuses_before_the_first_step():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ContractError, match="val loader's Stream"):
        a_trainer(RepresentationMonitor()).fit(Module(), loader_of(), DataLoader(Stream()))
    with pytest.raises(ContractError, match="22"):
        a_trainer(RepresentationMonitor(BIAS[:-1])).fit(Module(), loader_of(), loader_of())
    with pytest.raises(ContractError, match="head='tail'"):
        a_trainer(RepresentationMonitor(head="tail")).fit(Module(), loader_of(), loader_of())
    both = loader_of()
    for steps in (0, 2):
        with pytest.raises(ContractError, match="two DataLoaders"):
            a_trainer(RepresentationMonitor(), num_sanity_val_steps=steps).fit(Module(), both, both)
    with pytest.raises(ContractError, match="kappa"):
        RepresentationMonitor(kappa=2)
    with pytest.raises(ContractError, match="num_features"):
        Selectivity(2, 0)
