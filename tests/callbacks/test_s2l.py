"""S2L and LossTrajectory against the model's own losses; files, proxies, language models."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust import S2L, ContractError, LossTrajectory
from lightning_robust.functional.trajectories import load_trajectories
from lightning_robust.models import loss_trajectories

N = 40
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Blobs(Dataset):
    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.targets = torch.arange(N) % 2
        self.x = torch.randn(N, 3, generator=g) + self.targets[:, None]

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.targets[index])


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.net = nn.Linear(3, 2)
        for parameter in self.net.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=g)
        self.played: list[list[float]] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x)
        self.played.append(x[:, 0].tolist())
        return F.cross_entropy(logits, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


class Sees(Callback):
    """The losses of all examples after each step, by hand."""

    def __init__(self) -> None:
        self.losses: dict[int, Tensor] = {}

    @torch.no_grad()
    def on_train_batch_end(self, trainer, pl_module, *_):
        data = Blobs()
        self.losses[trainer.global_step] = F.cross_entropy(
            pl_module.net(data.x), data.targets, reduction="none"
        )


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [5, 10, 15, 20]),
        ({"every_n_epochs": 2}, [10, 20]),
        ({"every_n_steps": 3}, [3, 6, 9, 12, 15, 18]),
    ],
)
def test_records_the_losses_after_the_steps_it_says(settings, steps, tmp_path):
    recorder, sees = LossTrajectory(tmp_path / "new" / "losses.pt", **settings), Sees()
    Trainer(max_epochs=4, callbacks=[recorder, sees], **QUIET).fit(Module(), DataLoader(Blobs(), 8))
    assert recorder.steps == steps
    expected = torch.stack([sees.losses[step] for step in steps], 1)
    torch.testing.assert_close(recorder.trajectories, expected)
    torch.testing.assert_close(load_trajectories(tmp_path / "new" / "losses.pt"), expected)


def test_accumulated_batches_are_one_step():
    recorder = LossTrajectory(every_n_steps=1)
    Trainer(max_epochs=1, callbacks=[recorder], accumulate_grad_batches=2, **QUIET).fit(
        Module(), DataLoader(Blobs(), 4)
    )
    assert recorder.steps == [1, 2, 3, 4, 5]


def selected(method: S2L, data=None) -> set[float]:
    """Feature 0 of what is trained on."""
    module = Module()
    Trainer(max_epochs=1, callbacks=[method], **QUIET).fit(
        module, DataLoader(Blobs() if data is None else data, 8)
    )
    return {value for batch in module.played for value in batch}


def test_trains_on_as_many_of_each_cluster_as_there_are():
    curves = torch.tensor([[9.0, 9.0]] * 3 + [[0.0, 1.0]] * 7 + [[5.0, 0.0]] * 30)
    played = selected(S2L(curves, fraction=0.3, num_clusters=3))
    x = Blobs().x[:, 0].tolist()
    counts = [sum(x[i] in played for i in range(a, b)) for a, b in ((0, 3), (3, 10), (10, 40))]
    assert counts == [3, 4, 5]


def test_sources_give_even_shares():
    curves, sources = torch.zeros(N, 1), [0] * 10 + [1] * 30
    played = selected(S2L(curves, fraction=0.5, num_clusters=2, sources=sources))
    x = Blobs().x[:, 0].tolist()
    assert sum(value in played for value in x[:10]) == 10
    assert sum(value in played for value in x[10:]) == 10


def test_a_file_a_tensor_and_a_proxy_in_the_same_fit_select_alike(tmp_path):
    first_stage = partial(loss_trajectories, Module(), epochs=2, batch_size=8)
    table = first_stage(Blobs())
    assert table.shape == (N, 2)
    assert torch.equal(table, first_stage(Blobs()))
    torch.save(table, tmp_path / "losses.pt")
    settings = {"fraction": 0.4, "num_clusters": 4, "seed": 3}
    found = [selected(S2L(t, **settings)) for t in (table, tmp_path / "losses.pt", first_stage)]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 16


def test_a_proxy_leaves_the_generators_and_the_module_as_found():
    module, before = Module(), torch.get_rng_state()
    weights = module.net.weight.clone()
    loss_trajectories(module, Blobs(), epochs=1, batch_size=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(module.net.weight, weights)


@pytest.mark.parametrize(
    ("trajectories", "words"),
    [
        (None, "trajectories is None"),
        (torch.zeros(3, 2), "3 rows"),
        (lambda dataset: [1.0], "returned a list"),
        ("nowhere.pt", "no such file"),
    ],
)
def test_refuses_trajectories_before_training(trajectories, words):
    with pytest.raises(ContractError, match=words):
        selected(S2L(trajectories))


def test_refuses_other_arguments():
    with pytest.raises(ContractError, match="trajectories must be"):
        S2L(3)
    with pytest.raises(ContractError, match="reduction"):
        LossTrajectory(reduction="max")


# --- language models ------------------------------------------------------------------------------


class Text(Dataset):
    """Sequences of tokens without targets; the prompt's labels are -100."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(2, 11, (12, 6), generator=g)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = self.tokens[index]
        labels = tokens.clone()
        labels[: 1 + index % 3] = -100
        if index == 5:
            labels[:] = -100
        return {"input_ids": tokens, "labels": labels}


class LanguageModule(LightningModule):
    """Any causal language model that computes its loss inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 8)
        self.mix = nn.GRU(8, 8, batch_first=True)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, input_ids):
        return self.lm_head(self.mix(self.embed(input_ids))[0])

    def training_step(self, batch, batch_idx):
        logits = self(batch["input_ids"])
        return F.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
        )

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@torch.no_grad()
def by_token(module: LanguageModule, reduction: str) -> Tensor:
    """Each sequence by itself, token after token."""
    losses = []
    for item in Text():
        logits = module(item["input_ids"][None])[0].log_softmax(1)
        tokens = [
            -float(logits[t, item["labels"][t + 1]]) for t in range(5) if item["labels"][t + 1] >= 0
        ]
        total = sum(tokens)
        losses.append(total if reduction == "sum" else total / max(1, len(tokens)))
    return torch.tensor(losses)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_language_model_needs_no_targets(reduction):
    recorder = LossTrajectory(token_labels="labels", reduction=reduction, head="lm_head")
    module = LanguageModule()
    Trainer(max_epochs=2, callbacks=[recorder], **QUIET).fit(module, DataLoader(Text(), 5))
    torch.testing.assert_close(recorder.losses[-1], by_token(module, reduction))
    assert recorder.losses[-1][5] == 0
    method = S2L(recorder.trajectories, fraction=0.5, num_clusters=2)
    Trainer(max_epochs=1, callbacks=[method], **QUIET).fit(LanguageModule(), DataLoader(Text(), 5))
    assert int(method.kept.sum()) == 6


def test_a_hugging_face_model_and_its_head_are_found():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=11,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )

    class Fine(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = transformers.GPTNeoXForCausalLM(config)

        def forward(self, input_ids):
            return self.net(input_ids=input_ids).logits

        def training_step(self, batch, batch_idx):
            return self.net(**batch).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    recorder, module = LossTrajectory(token_labels="labels"), Fine()
    Trainer(max_epochs=1, callbacks=[recorder], **QUIET).fit(module, DataLoader(Text(), 5))
    module.eval()
    torch.testing.assert_close(recorder.losses[-1], by_token(module, "mean"), rtol=1e-4, atol=1e-5)


def test_a_batch_without_the_labels_is_refused():
    with pytest.raises(ContractError, match=r"token_labels='label' is not in the batch.*input_ids"):
        Trainer(
            max_epochs=1,
            callbacks=[LossTrajectory(token_labels="label", head="lm_head")],
            **QUIET,
        ).fit(LanguageModule(), DataLoader(Text(), 5))
