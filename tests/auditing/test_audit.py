"""What an audit finds, against what is known of the data, and against other ways to compute it."""

from __future__ import annotations

import colorsys

import lightning.pytorch as lightning
import pytest
import pytorch_lightning
import torch
from scipy.stats import binomtest
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_robust import AnnotatedDataset, ContractError, GroupDRO, GroupMetrics, audit
from lightning_robust.auditing.attributes import annotated_attributes, picture_attributes
from lightning_robust.auditing.measuring import wilson
from lightning_robust.contracts import names_in_keys, resolve_groups
from lightning_robust.data import ColouredDigits, ColouredDigitsDataModule
from lightning_robust.functional.clustering import matched_recall
from lightning_robust.models import SmallConvNet
from lightning_robust.models.xrm import alone, silent


@pytest.fixture(scope="module")
def found(early):
    return audit(early, ColouredDigitsDataModule())


def test_clusters_of_an_early_network_are_the_groups_of_the_data(found):
    assert found.reported == "val"
    for split in found.splits.values():
        assert matched_recall(split.inferred.ids, split.given.ids, split.targets) > 0.9


def test_what_is_written_comes_back_through_groups(found, early, tmp_path):
    path = tmp_path / "new" / "groups.csv"
    found.to_csv(path)
    for name, split in found.splits.items():
        again = resolve_groups(path, split.dataset, split=name)
        assert again.names == split.inferred.names
        assert torch.equal(again.ids, split.inferred.ids)

    with silent():
        measure = GroupMetrics(groups=path, stages=("val",))
        trainer = lightning.Trainer(callbacks=[measure, GroupDRO(path)], max_epochs=1, **alone())
        [measured] = trainer.validate(early, ColouredDigitsDataModule(), verbose=False)
        trainer.fit(SmallConvNetModule(), ColouredDigitsDataModule())
    for report in found.inferred_groups():
        [key] = names_in_keys([report.name])
        assert measured[f"val/group_acc/{key}"] == pytest.approx(report.accuracy)
    assert measured["val/acc"] == pytest.approx(found.split.accuracy)


class SmallConvNetModule(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = SmallConvNet()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_a_reported_group_is_counted_as_by_hand(found):
    split = found.split
    for report in (*found.inferred_groups(), *found.given_groups()):
        groups = split.given if report.name in split.given.names else split.inferred
        inside = [groups.names[i] == report.name for i in groups.ids.tolist()]
        rows = [i for i, is_in in enumerate(inside) if is_in]
        hits = [int(split.logits[i].argmax()) == int(split.targets[i]) for i in rows]
        assert (report.count, report.accuracy) == (len(rows), pytest.approx(sum(hits) / len(hits)))
        assert sorted(report.members.tolist()) == rows
    accuracies = [report.accuracy for report in found.inferred_groups()]
    assert accuracies == sorted(accuracies)


def test_colour_is_what_the_network_relies_on(found):
    own = dict(zip("01234", ("red", "yellow", "cyan", "blue", "magenta"), strict=True))
    assert {one.label: one.attribute for one in found.attributes[:5]} == {
        label: f"hue: {hue}" for label, hue in own.items()
    }


def test_influence_is_the_norm_of_the_gradient_of_the_last_layer(found, early):
    split, head = found.splits["train"], early.network[-1]
    for index in (0, 7, 100):
        image, target = split.dataset[index]
        loss = F.cross_entropy(early(image[None]), torch.tensor([target]))
        gradients = torch.autograd.grad(loss, list(head.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        assert float(split.memorisation[index]) == pytest.approx(float(norm), rel=1e-3)


def test_twins_tell_what_was_memorised(late):
    found = audit(late, ColouredDigitsDataModule(), infer="xrm")
    train = found.splits["train"]
    assert found.memorisation == "held-out"
    own_hue = train.given.ids % 5 == train.targets
    by_heart = train.memorisation >= 0.5
    assert (by_heart & ~own_hue).sum() >= 0.9 * (~own_hue).sum()
    assert (by_heart & ~own_hue).sum() >= 0.9 * by_heart.sum()
    wrong = torch.tensor([name.endswith("wrong") for name in train.inferred.names])
    assert (wrong[train.inferred.ids] == ~own_hue).float().mean() > 0.98
    assert found.notes == []


def test_says_when_all_is_fitted_and_clusters_say_nothing_of_training(late):
    [note] = audit(late, ColouredDigitsDataModule()).notes
    assert "earlier checkpoint" in note


def test_errors_are_groups(late):
    found = audit(late, {"test": ColouredDigits("test")}, infer="errors", class_names="abcde")
    split = found.split
    wrong = [name.endswith("wrong") for name in split.inferred.names]
    assert torch.equal(torch.tensor(wrong)[split.inferred.ids], ~split.correct)
    assert split.inferred.names[0] == "a right"


class Manual(pytorch_lightning.LightningModule):
    """On the other package, with dictionaries, and nothing that Lightning could call by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
        self.dropout, self.head = torch.nn.Dropout(), torch.nn.Linear(8, 3)

    def training_step(self, batch):
        self.log("step", 1.0)
        logits = self.head(self.dropout(self.body(batch["features"])))
        self.optimizers().zero_grad()
        self.manual_backward(F.cross_entropy(logits, batch["label"]))


class Dictionaries(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        self.targets = torch.arange(30) % 3

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return {"features": self.x[index], "label": self.targets[index]}


def test_any_module_is_observed_and_left_as_found():
    model, dataset = Manual().train(), Dictionaries()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = audit(model, dataset, infer="errors")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(child.training for child in model.modules())
    assert "predict_step" not in vars(model)
    expected = model.head(model.body.eval()(dataset.x))
    assert torch.allclose(found.split.logits, expected, atol=1e-5)
    with pytest.raises(ContractError, match="forward"):
        audit(model, dataset, infer="xrm")


def test_hues_are_those_of_colorsys():
    torch.manual_seed(0)
    pixels = torch.rand(200, 3, 1, 1)
    shown, names = picture_attributes(pixels)
    for row, (red, green, blue) in zip(shown, pixels.flatten(1).tolist(), strict=True):
        hue = 6 * colorsys.rgb_to_hsv(red, green, blue)[0]
        if max(red, green, blue) - min(red, green, blue) < 0.06 or abs(hue % 1 - 0.5) < 0.02:
            continue  # grey, or between two
        word = ("red", "yellow", "green", "cyan", "blue", "magenta")[round(hue) % 6]
        assert row[names.index(f"hue: {word}")]
    assert shown[:, names.index("dark")].sum() == 20


def test_attributes_of_a_file(tmp_path):
    path = tmp_path / "attributes.csv"
    path.write_text("split,index,water,place\nval,1,0,sea\nval,0,1,city\ntrain,0,1,sea\n")
    shown, names = annotated_attributes(path, TensorDataset(torch.zeros(2)), "val")
    assert names == ("water", "place=city", "place=sea")
    assert shown.tolist() == [[True, True, False], [False, False, True]]


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (5, 10), (99, 100)])
def test_intervals_are_wilsons(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"infer": "magic"}, "infer"),
        ({"min_count": 0}, "min_count"),
        ({"isolation_fraction": 1.0}, "isolation_fraction"),
        ({"model": "resnet"}, "model"),
        ({"data": {"training": ColouredDigits()}}, "training"),
        ({"data": TensorDataset(torch.zeros(3, 3, 8, 8))}, "targets"),
        ({"data": {"val": ColouredDigits("val")}, "infer": "xrm"}, "train"),
        ({"class_names": ["a", "a", "b", "c", "d"]}, "class_names"),
        ({"groups": [0, 1]}, "groups"),
        ({"attributes": "absent.csv"}, "absent.csv"),
        ({"head": "nowhere"}, "nowhere"),
        ({"data": AnnotatedDataset(ColouredDigits(), targets=[9] * 1200)}, "head"),
    ],
)
def test_refuses(arguments, named):
    settings = {"model": SmallConvNet(), "data": ColouredDigits(), **arguments}
    with pytest.raises(ContractError, match=named):
        audit(**settings)
