from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_robust import ContractError, ImportanceTempering

SIZES = (16, 4, 1, 0, 9)
NAMES = ("ocean", "land", "sky", "space", "town")
N = sum(SIZES)
ROOTS = [1.0, 2.0, 4.0, 1.0, 4 / 3]  # (16 / n_g) ** 0.5


class Grouped(Dataset):
    """Five groups, one of them empty, and three classes; each item brings its index along."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        groups = torch.cat([torch.full((s,), i) for i, s in enumerate(SIZES)])
        self.groups = groups[torch.randperm(N, generator=g)]
        self.group_names = NAMES
        self.targets = (self.groups + (torch.rand(N, generator=g) < 0.3)) % 3
        self.x = torch.randn(N, 5, generator=g)

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.x[index], int(self.targets[index]), index


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A head with a bias, and one class more than there are."""
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 4))
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6, generator=g)
    return net.to(dtype)


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.played: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        logits = self.net(x)  # a pass that only looks for the head gets no further
        self.played.append(index.tolist())
        return F.cross_entropy(logits, y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(method: ImportanceTempering, module: LightningModule | None = None, data=None, epochs=3):
    module = module or Module()
    trainer = Trainer(
        callbacks=[method],
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = data or Grouped()
    trainer.fit(module, DataLoader(data, batch_size=7 if data.x.shape[1] == 5 else len(data)))
    return module


def by_hand(played, loss_of) -> list[Tensor]:
    """The parameters after training, example by example in float64."""
    data, net = Grouped(), network(torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step, batch in enumerate(played):
        optimizer.zero_grad()
        for i in batch:
            features = net[:2](data.x[i].double())
            loss = loss_of(net[2], features, int(data.targets[i]), int(data.groups[i]), step // 5)
            (loss / len(batch)).backward()
        optimizer.step()
    return list(net.parameters())


def assert_same(module, expected) -> None:
    for one, other in zip(expected, module.parameters(), strict=True):
        assert torch.allclose(one.float(), other, rtol=0, atol=1e-6)


def cross_entropy(logits: Tensor, target: int) -> Tensor:
    return -logits.log_softmax(0)[target]


@pytest.mark.parametrize("normalise", [False, True])
def test_features_are_divided_by_the_margin_of_the_group(normalise):
    """Eq. 3, lambda = 1 / margin, on the features and the constant that belongs to the bias."""

    def loss_of(head, features, target, group, epoch):
        margin = ROOTS[group]
        extended = torch.cat([features, torch.ones(1, dtype=torch.float64)]) / margin
        weight = torch.cat([head.weight, head.bias[:, None]], 1)
        return cross_entropy(weight @ extended, target) * (margin if normalise else 1)

    module = fit(ImportanceTempering(head="net.2", normalise=normalise))
    assert_same(module, by_hand(module.played, loss_of))


def test_the_classifier_is_divided_by_the_margin_of_each_class():
    """Eq. 4: the rows of the classifier, whatever the example's own class."""
    counts = torch.bincount(Grouped().targets, minlength=4).tolist()
    margins = [(max(counts) / count) ** 0.3 if count else 1.0 for count in counts]
    assert len(set(margins)) == 3

    def loss_of(head, features, target, group, epoch):
        rows = [(head.weight[k] @ features + head.bias[k]) / margins[k] for k in range(4)]
        return cross_entropy(torch.stack(rows), target)

    method = ImportanceTempering(by="class", on="classifier", power=0.3, head="net.2")
    module = fit(method)
    assert_same(module, by_hand(module.played, loss_of))


def test_two_stages():
    """Appendix E.1: gamma .2 first, then the real one."""

    def loss_of(head, features, target, group, epoch):
        power = 0.2 if epoch < 2 else 0.8
        margin = (16 / SIZES[group]) ** power
        return cross_entropy(head(features) / margin, target)

    module = fit(ImportanceTempering(head="net.2", power=0.8, pretrain_epochs=2), epochs=4)
    assert_same(module, by_hand(module.played, loss_of))


@pytest.mark.parametrize(
    "margins",
    [
        {"ocean": 0.01, "land": 0.02, "sky": 1, "town": 1 / 75},
        {0: 0.01, 1: 0.02, 2: 1.0, "town": 1 / 75, 3: 7.0},
    ],
)
def test_margins_as_the_paper_lists_them(margins):
    """Appendix E.2 lists 1 / f (1/100, 1/50, 1, 1/75): the smallest group, sky, gets the 1."""
    f = {0: 100, 1: 50, 2: 1, 4: 75}

    def loss_of(head, features, target, group, epoch):
        return cross_entropy(head(features) * f[group], target)

    method = ImportanceTempering(margins=margins, head="net.2", normalise=True)
    module = fit(method, epochs=1)

    def normalised(*arguments):
        return loss_of(*arguments) / f[arguments[3]]

    assert_same(module, by_hand(module.played, normalised))


def test_by_class_with_margins_by_label():
    def loss_of(head, features, target, group, epoch):
        return cross_entropy(head(features) / [1.0, 3.0, 0.5][target], target)

    method = ImportanceTempering(by="class", margins={0: 1.0, 1: 3.0, 2: 0.5}, head="net.2")
    module = fit(method)
    assert_same(module, by_hand(module.played, loss_of))


def test_evaluation_sees_the_models_own_logits():
    module = fit(ImportanceTempering(head="net.2"))
    x, (first, _, last) = Grouped().x, module.net
    logits = (x @ first.weight.T + first.bias).tanh() @ last.weight.T + last.bias
    for training in (False, True):
        assert torch.allclose(module.train(training).net(x), logits, atol=1e-6)


class Separable(Dataset):
    """Two separable clouds in the plane, group = class: 20 of class 0, 5 of class 1."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.targets = self.groups = torch.cat([torch.zeros(20), torch.ones(5)]).long()
        sign = (2 * self.targets - 1)[:, None]
        # far from the boundary along x, close to it along y, differently for each class
        centre = torch.where(sign > 0, torch.tensor([1.0, 0.6]), torch.tensor([-0.5, -1.5]))
        self.x = centre.double() + 0.3 * torch.randn(25, 2, generator=g).double()

    def __len__(self) -> int:
        return 25

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.targets[index])


class Linear(LightningModule):
    """A linear classifier without bias, by gradient steps of growing length (the loss shrinks)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2, bias=False).double()
        nn.init.zeros_(self.net.weight)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer):
        self.net.weight.grad /= self.net.weight.grad.norm()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)

    @property
    def direction(self) -> Tensor:
        direction = (self.net.weight[1] - self.net.weight[0]).detach()
        return direction / direction.norm()


def cost_sensitive_svm(margins: tuple[float, float]) -> Tensor:
    """min ||w|| subject to y w.x >= margin, by scikit-learn, in direction.

    The points and their mirror images make the intercept zero.
    """
    data = Separable()
    sign = (2 * data.targets - 1).double()
    points = sign[:, None] * data.x / torch.tensor(margins).double()[data.targets][:, None]
    svm = SVC(kernel="linear", C=1e8, tol=1e-9)
    svm.fit(torch.cat([points, -points]).numpy(), [1] * 25 + [-1] * 25)
    assert abs(svm.intercept_[0]) < 1e-6
    direction = torch.tensor(svm.coef_[0])
    return direction / direction.norm()


@pytest.mark.parametrize("margins", [(1.0, 1.0), (0.33, 1.0), (0.1, 1.0)])
def test_the_direction_is_that_of_the_cost_sensitive_svm(margins):
    """Theorem 1: the larger margin is the one that is kept, and not its inverse."""
    method = ImportanceTempering(margins=dict(enumerate(margins)))
    found = fit(method, Linear(), Separable(), epochs=400).direction
    assert found @ cost_sensitive_svm(margins) > 0.999
    if margins != (1.0, 1.0):
        inverse = tuple(1 / margin for margin in margins)
        assert found @ cost_sensitive_svm(inverse) < 0.99
        data = Separable()
        distance = (2 * data.targets - 1) * (data.x @ found)
        nearest = [float(distance[data.targets == y].min()) for y in (0, 1)]
        assert nearest[1] > nearest[0]


def test_the_rule_gives_the_smaller_group_the_larger_margin():
    """20 and 5 examples: the square root of 4."""
    found = fit(ImportanceTempering(), Linear(), Separable(), epochs=400).direction
    assert found @ cost_sensitive_svm((1.0, 2.0)) > 0.999


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"by": "example"}, "by"),
        ({"power": -0.5}, "power"),
        ({"margins": {"ocean": 0.0}}, "margins"),
        ({"on": "head"}, "on"),
        ({"on": "classifier"}, "classifier"),
        ({"pretrain_epochs": -1}, "pretrain_epochs"),
        ({"pretrain_power": "low"}, "pretrain_power"),
        ({"normalise": 1}, "normalise"),
    ],
)
def test_refuses_bad_arguments_by_name(arguments, words):
    with pytest.raises(ContractError, match=words):
        ImportanceTempering(**arguments)


@pytest.mark.parametrize(
    ("margins", "words"),
    [
        ({"ocean": 1, "land": 2, "sky": 3}, "no entry for the group 'town'"),
        ({"ocean": 1, "land": 2, "sky": 3, "towns": 4}, "'towns', which is no group"),
        ({0: 1, 1: 1, 2: 1, 4: 1, 5: 1}, "5, which is no group"),
    ],
)
def test_refuses_margins_that_do_not_fit_before_the_first_step(margins, words):
    module = Module()
    with pytest.raises(ContractError, match=words):
        fit(ImportanceTempering(margins=margins, head="net.2"), module)
    assert not module.played


def test_refuses_a_classifier_of_one_output():
    class OneOutput(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1).double()

    method = ImportanceTempering(by="class", on="classifier")
    with pytest.raises(ContractError, match="one output for two"):
        fit(method, OneOutput(), Separable())
