"""What plain values make of a classifier: optimizers, schedules, batches, networks by name."""

from __future__ import annotations

from math import cos, pi

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import JTT, ContractError, RandomSubset
from lightning_robust.models import (
    Classifier,
    LanguageModel,
    language_model,
    text_network,
    timm_network,
    torchvision_network,
)

transformers = pytest.importorskip("transformers")


def points(n: int = 40) -> TensorDataset:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g)
    return TensorDataset(x, (x[:, 0] > 0).long())


class Rates(Callback):
    """The learning rate of every step, and the epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(module, *callbacks, epochs: int = 4, trainer=None, **settings):
    rates = Rates()
    run = Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks, rates],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False} | (trainer or {}),
    )
    run.fit(module, DataLoader(points(), 10), DataLoader(points(), 40), **settings)
    return rates.seen


def scheduled(**settings) -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Linear(4, 2), learning_rate=1.0, weight_decay=0.0, **settings)


# --- optimizers -----------------------------------------------------------------------------------


def test_as_before_it_is_plain_sgd_over_everything():
    module = Classifier(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    found = module.configure_optimizers()
    plain = SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    assert type(found) is SGD
    assert found.param_groups == plain.param_groups


@pytest.mark.parametrize(("name", "kind"), [("sgd", SGD), ("adamw", AdamW)])
def test_biases_and_norms_may_go_without_decay(name, kind):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    module = Classifier(network, optimizer=name, weight_decay=0.5, decay_all=False)
    optimizer = module.configure_optimizers()
    assert type(optimizer) is kind
    decayed = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    assert decayed == {id(network[0].weight), id(network[3].weight)}
    everything = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert everything == {id(p) for p in module.parameters()}


# --- schedules: 4 epochs of 4 steps ---------------------------------------------------------------

SHARES = [step / 16 for step in range(16)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "linear"}, [1 - s for s in SHARES]),
        ({"schedule": "cosine"}, [(1 + cos(pi * s)) / 2 for s in SHARES]),
        (
            {"schedule": "linear", "warmup": 0.25},
            [4 * s if s < 0.25 else (1 - s) / 0.75 for s in SHARES],
        ),
        ({"warmup": 0.5}, [min(1, 2 * s) for s in SHARES]),
        (
            {"schedule": "multistep", "milestones": [1, 3], "decay_factor": 0.5},
            [1.0] * 4 + [0.5] * 8 + [0.25] * 4,
        ),
    ],
    ids=str,
)
def test_rates_follow_the_schedule(settings, expected):
    assert fit(scheduled(**settings)) == pytest.approx(expected)


def test_the_end_may_be_a_number_of_steps():
    rates = fit(scheduled(schedule="linear"), epochs=-1, trainer={"max_steps": 8})
    assert rates == pytest.approx([1 - step / 8 for step in range(8)])


def test_the_schedule_comes_to_its_end_where_a_method_shortens_epochs():
    rates = fit(scheduled(schedule="linear"), RandomSubset(0.5, seed=0))  # 2 steps an epoch
    assert rates == pytest.approx([1 - step / 8 for step in range(8)])


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_schedule_starts_again_where_training_does(tmp_path):
    settings = {"schedule": "linear", "warmup": 0.5}
    expected = [s / 0.5 for s in SHARES[:8:2]] + [(1 - s) / 0.5 for s in SHARES[8::2]]
    rates = fit(scheduled(**settings), JTT(2, seed=0))
    assert rates[8:] == pytest.approx(expected)

    def checkpoints():
        return ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    trainer = {"enable_checkpointing": True}
    fit(scheduled(**settings), JTT(2, seed=0), checkpoints(), trainer=trainer)
    for done in (2, 3):  # at the restart, and behind it
        resumed = fit(
            scheduled(**settings),
            JTT(2, seed=0),
            checkpoints(),
            trainer=trainer,
            ckpt_path=tmp_path / f"epoch={done - 1}.ckpt",
        )
        assert resumed == pytest.approx(rates[4 * done :])


def test_a_schedule_without_end_is_refused():
    with pytest.raises(ContractError, match="max_epochs"):
        fit(scheduled(schedule="cosine"), epochs=-1, trainer={"max_time": "00:00:10:00"})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"optimizer": "adam"}, "optimizer"),
        ({"schedule": "step"}, "schedule"),
        ({"warmup": 1.0}, "warmup"),
        ({"milestones": [3]}, "milestones"),
        ({"schedule": "multistep"}, "milestones"),
        ({"decay_all": 1}, "decay_all"),
    ],
)
def test_refuses_bad_arguments(settings, named):
    with pytest.raises(ContractError, match=named):
        Classifier(nn.Linear(1, 2), **settings)


# --- networks by name -----------------------------------------------------------------------------


def test_torchvision_networks_get_a_head_and_a_stem():
    network = torchvision_network("resnet18", 7, small_images=True)
    assert (network.fc.out_features, network.conv1.stride) == (7, (1, 1))
    assert isinstance(network.maxpool, nn.Identity)
    assert torchvision_network("vgg11", 3).classifier[-1].out_features == 3
    with pytest.raises(ContractError, match="resnet51"):
        torchvision_network("resnet51", 7)
    with pytest.raises(ContractError, match="small_images"):
        torchvision_network("vgg11", 7, small_images=True)


def test_timm_networks_have_classes_and_channels():
    network = timm_network("resnet10t", 3, in_channels=1)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ContractError, match="resnet51"):
        timm_network("resnet51", 3)


@pytest.fixture
def tokens() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (6, 5), generator=g)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_a_text_classifier_takes_dictionaries(tmp_path, tokens):
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    config.save_pretrained(tmp_path)
    network = text_network(str(tmp_path), 3, pretrained=False, dropout=0.25)
    assert (network.dropout.p, network.classifier.out_features) == (0.25, 3)
    module = Classifier(network).eval()
    module.log = lambda *_, **__: None
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    by_hand = F.cross_entropy(network(**tokens).logits, labels)
    torch.testing.assert_close(module.training_step({**tokens, "labels": labels}, 0), by_hand)


def test_a_language_model_learns_the_next_labelled_token(tmp_path, tokens):
    config = transformers.GPTNeoXConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    config.save_pretrained(tmp_path)
    network = language_model(str(tmp_path), pretrained=False).eval()
    module = LanguageModel(network)
    module.log = lambda *_, **__: None
    labels = tokens["input_ids"].clone()
    labels[:, :3] = -100
    logits = module(tokens)
    by_hand = torch.stack(
        [-logits[i, t - 1].log_softmax(0)[labels[i, t]] for i in range(6) for t in (3, 4)]
    ).mean()
    torch.testing.assert_close(module.training_step({**tokens, "labels": labels}, 0), by_hand)
