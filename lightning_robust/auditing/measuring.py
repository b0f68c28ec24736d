"""What an audit measures, as plain records; :mod:`~lightning_robust.auditing.page` shows them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from lightning_robust.auditing.attributes import (
    AttributesLike,
    annotated_attributes,
    group_attributes,
    picture_attributes,
)
from lightning_robust.auditing.looking import (
    Data,
    loaders_of,
    network_of,
    observe_splits,
    restarted,
)
from lightning_robust.auditing.pictures import small_pixels
from lightning_robust.contracts import (
    AnnotatedDataset,
    ContractError,
    Groups,
    GroupsLike,
    check_choice,
    check_in_range,
    check_integer,
    groups_of,
    resolve_groups,
    targets_of,
)
from lightning_robust.functional.clustering import cluster_by_class
from lightning_robust.functional.explanations import Discrepancy, rank_attributes
from lightning_robust.functional.gradients import logit_gradients
from lightning_robust.functional.isolation import isolated_examples
from lightning_robust.models.xrm import cross_risk
from lightning_robust.randomness import generator, isolated, resolve_seed

Inference = Literal["spare", "xrm", "errors"]

_Z = 1.96  # of a 95 % interval


@dataclass(frozen=True, eq=False)
class AuditedSplit:
    """What was found in one split, a row an example in dataset order.

    Args:
        dataset: Its n examples.
        targets: (n,) int64.
        logits: (n, C) float32, of the model as it is.
        features: (n, d) float32, the input of its head.
        inferred: The groups inferred.
        given: The groups that came with the data, or ``None``.
        memorisation: (n,) float64; see :attr:`Audit.memorisation`.
        isolated: (n,) bool, whether no other example of the class has a gradient near.
    """

    dataset: Dataset[Any]
    targets: Tensor
    logits: Tensor
    features: Tensor
    inferred: Groups
    given: Groups | None
    memorisation: Tensor
    isolated: Tensor

    @property
    def predictions(self) -> Tensor:
        """(n,) int64."""
        return self.logits.argmax(1)

    @property
    def correct(self) -> Tensor:
        """(n,) bool."""
        return self.predictions == self.targets

    @property
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return float(self.correct.double().mean())


@dataclass(frozen=True, eq=False)
class GroupReport:
    """How a group fares.

    Args:
        name: Of the group.
        count: Its examples in the reported split.
        accuracy: Share of them that are right; NaN without any.
        interval: Wilson's 95 % interval of the accuracy.
        train_count: Its examples in the training split, if another is reported; else 0.
        train_accuracy: Share of those that are right; NaN without any.
        mistaken_for: The class that most of its errors are taken for, or "".
        overlap: The given group that makes up most of it, or "".
        overlap_share: Its share, of the examples that the table is about.
        members: Indices in the reported split, those with the least probability of their class
            first.
    """

    name: str
    count: int
    accuracy: float
    interval: tuple[float, float]
    train_count: int
    train_accuracy: float
    mistaken_for: str
    overlap: str
    overlap_share: float
    members: Tensor


@dataclass(frozen=True, eq=False)
class Audit:
    """What :func:`audit` found. Print it for a summary, :meth:`write` it as a page and a table.

    Args:
        model_name: What the model is called.
        data_name: What the data are called.
        class_names: C names.
        infer: How groups were inferred: ``"spare"``, ``"xrm"`` or ``"errors"``.
        splits: What was found, by split.
        reported: The split whose accuracies are reported: ``"val"`` or ``"test"`` where there is
            one, else ``"train"``.
        memorisation: What the number of an example means: ``"held-out"``, the probability of its
            class by the model minus that by a twin that has not seen the example (training split
            only); or ``"gradient"``, the norm of the loss's gradient with respect to the last
            layer, the example's influence on itself.
        attributes: Attributes of classes, the most harmful first.
        min_count: Smaller groups are listed last: their accuracies say little.
    """

    model_name: str
    data_name: str
    class_names: tuple[str, ...]
    infer: Inference
    splits: Mapping[str, AuditedSplit]
    reported: str
    memorisation: Literal["held-out", "gradient"]
    attributes: tuple[Discrepancy, ...]
    min_count: int

    @property
    def split(self) -> AuditedSplit:
        """The split that is reported."""
        return self.splits[self.reported]

    @property
    def trained_on(self) -> str:
        """The split whose memorised and isolated examples are reported: ``"train"`` if there."""
        return "train" if "train" in self.splits else self.reported

    def inferred_groups(self) -> list[GroupReport]:
        """The inferred groups of the reported split, the worst first."""
        return self._reports("inferred")

    def given_groups(self) -> list[GroupReport]:
        """The groups that came with the reported split, the worst first; none where it has none."""
        return self._reports("given") if self.split.given is not None else []

    def most_memorised(self, count: int) -> Tensor:
        """Indices of the examples of :attr:`trained_on` that are memorised most, (<= count,)."""
        values = self.splits[self.trained_on].memorisation
        return values.argsort(descending=True, stable=True)[:count]

    @property
    def notes(self) -> list[str]:
        """What to keep in mind, in sentences."""
        said = []
        train = self.splits.get("train")
        if self.reported == "train":
            said.append(
                "There is no held-out split: accuracies are those of data the model may have been "
                "trained on."
            )
        if train is not None and self.infer != "xrm":
            labels = train.targets.unique()
            lone = sum(
                len(train.inferred.ids[train.targets == label].unique()) < 2 for label in labels
            )
            if 2 * lone >= len(labels):
                said.append(
                    f"In {lone} of {len(labels)} classes nearly all training examples are alike to "
                    "the model, and all are in one group: it has fitted them, so its outputs no "
                    "longer tell groups apart there. For groups to train with, audit an earlier "
                    "checkpoint, or infer them with xrm."
                )
        return said

    def to_csv(self, path: str | Path) -> None:
        """Write a row an example of every split; ``groups=`` of every callback reads it.

        Columns: ``split``, ``index``, ``group`` (the inferred one), ``given_group`` where the data
        have groups, ``target`` and ``prediction`` by name, ``correct``, ``memorisation`` and
        ``isolated``.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        any_given = any(split.given is not None for split in self.splits.values())
        header = ["split", "index", "group", *(["given_group"] if any_given else [])]
        header += ["target", "prediction", "correct", "memorisation", "isolated"]
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(header)
            for name, split in self.splits.items():
                group = [split.inferred.names[i] for i in split.inferred.ids.tolist()]
                given = split.given
                of_data = [""] * len(group)
                if given is not None:
                    of_data = [given.names[i] for i in given.ids.tolist()]
                for index, (target, prediction, score, lonely) in enumerate(
                    zip(
                        split.targets.tolist(),
                        split.predictions.tolist(),
                        split.memorisation.tolist(),
                        split.isolated.tolist(),
                        strict=True,
                    )
                ):
                    rows.writerow(
                        [
                            name,
                            index,
                            group[index],
                            *([of_data[index]] if any_given else []),
                            self.class_names[target],
                            self.class_names[prediction],
                            int(target == prediction),
                            f"{score:.6g}",
                            int(lonely),
                        ]
                    )

    def write(self, folder: str | Path) -> Path:
        """Write ``audit.html``, one page that needs nothing else, and ``groups.csv``.

        Args:
            folder: Made if need be.

        Returns:
            The page.
        """
        from lightning_robust.auditing.page import page

        folder = Path(folder)
        self.to_csv(folder / "groups.csv")
        written = folder / "audit.html"
        with isolated(seed=0):  # pictures may be augmented
            written.write_text(page(self), encoding="utf-8")
        return written

    def __str__(self) -> str:
        """The worst groups, in a few lines."""
        lines = [
            f"{self.model_name} on {self.data_name}, {self.reported} split: accuracy "
            f"{self.split.accuracy:.1%} of {len(self.split.targets)} examples"
        ]
        for kind, reports in (("inferred", self.inferred_groups()), ("given", self.given_groups())):
            if reports:
                lines.append(f"worst {kind} groups:")
                lines += [
                    f"  {report.accuracy:6.1%} of {report.count:5d}  {report.name}"
                    + (f", mostly taken for {report.mistaken_for}" if report.mistaken_for else "")
                    for report in reports[:5]
                ]
        return "\n".join(lines)

    def _reports(self, kind: Literal["inferred", "given"]) -> list[GroupReport]:
        split, train = self.split, self.splits.get("train")
        groups: Groups = getattr(split, kind)
        train_groups: Groups | None = getattr(train, kind) if train is not None else None
        own = torch.softmax(split.logits.double(), 1).gather(1, split.targets.unsqueeze(1))
        reports = []
        for group, name in enumerate(groups.names):
            inside = groups.ids == group
            count, train_count, train_accuracy = int(inside.sum()), 0, torch.nan
            if train_groups is not None and train is not split and name in train_groups.names:
                assert train is not None
                trained = train_groups.ids == train_groups.names.index(name)
                train_count = int(trained.sum())
                train_accuracy = float(train.correct[trained].double().mean())
            if not count and not train_count:
                continue
            overlap, share = "", torch.nan
            if kind == "inferred" and split.given is not None and count:
                counts = torch.bincount(split.given.ids[inside])
                overlap = split.given.names[int(counts.argmax())]
                share = float(counts.max() / count)
            wrong = split.predictions[inside & ~split.correct]
            right = int((inside & split.correct).sum())
            members = inside.nonzero().flatten()
            reports.append(
                GroupReport(
                    name=name,
                    count=count,
                    accuracy=right / count if count else torch.nan,
                    interval=wilson(right, count),
                    train_count=train_count,
                    train_accuracy=train_accuracy,
                    mistaken_for=self.class_names[int(wrong.mode().values)] if len(wrong) else "",
                    overlap=overlap,
                    overlap_share=share,
                    members=members[own[members].flatten().argsort(stable=True)],
                )
            )
        return sorted(
            reports, key=lambda r: (r.count < self.min_count, not r.count, r.accuracy, -r.count)
        )


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) without any trial.

    Example:
        >>> [round(bound, 3) for bound in wilson(5, 10)]
        [0.237, 0.763]
    """
    if not count:
        return 0.0, 1.0
    share, spread = successes / count, _Z**2 / count
    centre = share + spread / 2
    width = _Z * (share * (1 - share) / count + spread / (4 * count)) ** 0.5
    return (
        max(0.0, (centre - width) / (1 + spread)),
        min(1.0, (centre + width) / (1 + spread)),
    )


def audit(
    model: nn.Module,
    data: Data,
    *,
    infer: Inference = "spare",
    groups: GroupsLike | Mapping[str, GroupsLike] | None = None,
    attributes: AttributesLike | None = None,
    class_names: Sequence[str] | None = None,
    model_name: str | None = None,
    data_name: str | None = None,
    head: str | None = None,
    max_clusters: int = 10,
    xrm_epochs: int = 10,
    inputs: Callable[[Any], Any] | None = None,
    isolation_fraction: float = 0.2,
    min_count: int = 10,
    batch_size: int = 64,
    seed: int | None = None,
) -> Audit:
    """Look at a trained classifier: whom it fails, what it memorised, what it relies on.

    The model runs once over every split, in evaluation mode, and is left as found. Groups are
    inferred in one of three ways, each within the classes:

    - ``"spare"`` clusters what the model says, its probabilities, in the reported split; examples
      of other splits belong to the nearest centre of their class. As in SPARE, which clusters the
      training set early in training.
    - ``"xrm"`` trains twins anew, each on half of the training split, and tells the examples that a
      twin gets wrong from the others. Costs ``xrm_epochs`` epochs of training two networks.
    - ``"errors"`` tells what the model gets wrong from what it gets right, as JTT does.

    Args:
        model: A LightningModule, of either package, or a network that maps inputs to logits.
        data: A LightningDataModule, whose training and validation sets are taken (its test set
            where it has no validation set); data sets by split, ``{"train": ..., "val": ...}``; or
            one data set. Data sets need targets.
        infer: ``"spare"``, ``"xrm"`` or ``"errors"``.
        groups: Known groups, a value or one a split; ``None`` takes the data sets' own, if any.
        attributes: Attributes of the reported split: a CSV file, or by name what ``groups=`` takes.
            Groups that cut across classes count as attributes, too; and of pictures, hue,
            brightness and contrast.
        class_names: C names; ``None`` takes the data set's ``classes``, else numbers.
        model_name: For the title; ``None`` takes the class's name.
        data_name: For the title; ``None`` takes the class's name.
        head: Name of the module that returns the logits; ``None`` finds it.
        max_clusters: Of ``"spare"``, clusters a class at most.
        xrm_epochs: Of ``"xrm"``, epochs of training the twins.
        inputs: Of ``"xrm"``, takes the network's input out of a batch; ``None``: its first part.
        isolation_fraction: Medoids over examples, in (0, 1), as EPIC's ``fraction``.
        min_count: Groups with fewer examples are listed last, and attributes with fewer left out.
        batch_size: Examples at a time, where ``data`` brings no loaders.
        seed: Seed of clustering and twins; ``None`` takes ``seed_everything``'s, else 0.

    Returns:
        What was found.

    Raises:
        ContractError: An argument is refused, there are no targets, or the head is not found.

    Example:
        >>> from lightning_robust.data import ColouredDigits
        >>> from lightning_robust.models import SmallConvNet
        >>> found = audit(SmallConvNet(), ColouredDigits("train"), infer="errors")
        >>> found.reported, len(found.split.inferred)
        ('train', 1200)
    """
    check_choice("infer", infer, ("spare", "xrm", "errors"))
    check_integer("max_clusters", max_clusters, 2)
    check_integer("xrm_epochs", xrm_epochs, 1)
    check_integer("min_count", min_count, 1)
    check_integer("batch_size", batch_size, 1)
    check_in_range("isolation_fraction", isolation_fraction, 1e-9, 1 - 1e-9)
    if not isinstance(model, nn.Module):
        raise ContractError(
            f"model must be a LightningModule or another torch module, got {type(model).__name__}"
        )
    loaders = loaders_of(data, batch_size)
    datasets = {name: loader.dataset for name, loader in loaders.items()}
    targets = {name: targets_of(dataset) for name, dataset in datasets.items()}
    given = {name: _given(groups, dataset, name) for name, dataset in datasets.items()}
    reported = next(name for name in ("val", "test", "train") if name in loaders)
    if infer == "xrm" and "train" not in loaders:
        raise ContractError(
            "infer='xrm' trains twins on the training split, and there is none; give one, or use "
            "infer='spare'"
        )
    of_attributes = (
        None
        if attributes is None
        else annotated_attributes(attributes, datasets[reported], reported)
    )
    seen, _ = observe_splits(model, data, loaders, head)
    logits: dict[str, Tensor] = {name: _there(split.logits) for name, split in seen.items()}
    names = _class_names(class_names, datasets[reported], logits[reported].shape[1])
    seed = resolve_seed(seed)
    held_out = None
    if infer == "xrm":
        train, others = loaders["train"], [name for name in loaders if name != "train"]
        found = cross_risk(
            restarted(network_of(model), seed),
            train.dataset,
            datasets[others[0]] if others else None,
            epochs=xrm_epochs,
            seed=seed,
            batch_size=train.batch_size or batch_size,
            collate_fn=train.collate_fn,
            inputs=inputs,
        )
        held_out = found.held_out
        wrong = {"train": found.groups.ids % 2 == 1}
        if found.val_groups is not None:
            wrong[others[0]] = found.val_groups.ids % 2 == 1
        labels = {name: _halves(targets[name], wrong[name], names) for name in wrong}
    elif infer == "errors":
        labels = {
            name: _halves(targets[name], logits[name].argmax(1) != targets[name], names)
            for name in loaders
        }
    else:
        labels = _clusters(logits, targets, reported, names, max_clusters, seed)
    inferred = _numbered(labels)
    splits = {}
    for name in loaders:
        features = _there(seen[name].features)
        gradients = logit_gradients(logits[name], targets[name])
        influence = gradients.double().norm(dim=1) * (features.double().square().sum(1) + 1).sqrt()
        splits[name] = AuditedSplit(
            dataset=datasets[name],
            targets=targets[name],
            logits=logits[name],
            features=features,
            inferred=inferred[name],
            given=given[name],
            memorisation=influence,
            isolated=isolated_examples(gradients, targets[name], isolation_fraction),
        )
    if held_out is not None:
        train_split = splits["train"]
        own = train_split.targets.unsqueeze(1)
        known = torch.softmax(train_split.logits.double(), 1).gather(1, own)
        unseen = torch.softmax(held_out.double(), 1).gather(1, own)
        splits["train"] = replace(train_split, memorisation=(known - unseen).flatten())
    return Audit(
        model_name=model_name or type(model).__name__,
        data_name=data_name or _name(data),
        class_names=names,
        infer=infer,
        splits=splits,
        reported=reported,
        memorisation="gradient" if held_out is None else "held-out",
        attributes=_discrepancies(splits[reported], names, of_attributes, min_count),
        min_count=min_count,
    )


def _name(data: Data) -> str:
    return type(next(iter(data.values())) if isinstance(data, Mapping) else data).__name__


def _there(values: Tensor | None) -> Tensor:
    assert values is not None
    return values


def _given(
    groups: GroupsLike | Mapping[str, GroupsLike] | None, dataset: Dataset[Any], split: str
) -> Groups | None:
    """The groups of a split, if somebody gave any."""
    if groups is not None and not (isinstance(groups, Mapping) and split not in groups):
        return resolve_groups(groups, dataset, split=split)
    try:
        return groups_of(dataset)
    except ContractError:
        return None


def _class_names(names: Sequence[str] | None, dataset: Any, num_classes: int) -> tuple[str, ...]:
    """C distinct names, of the argument, the data set, or numbers."""
    found = names
    while found is None and dataset is not None:
        found = getattr(dataset, "classes", None)
        dataset = dataset.dataset if isinstance(dataset, Subset | AnnotatedDataset) else None
    if found is None:
        return tuple(map(str, range(num_classes)))
    distinct = tuple(str(name).strip() for name in found)
    if len(set(distinct)) < len(distinct) or (names is not None and len(names) < num_classes):
        raise ContractError(
            f"class_names must be {num_classes} different names, got {list(found)!r}"
        )
    rest = tuple(str(label) for label in range(len(distinct), num_classes))
    return distinct + rest


def _halves(targets: Tensor, wrong: Tensor, names: Sequence[str]) -> list[str]:
    words = ("right", "wrong")
    return [
        f"{names[target]} {words[half]}"
        for target, half in zip(targets.tolist(), wrong.int().tolist(), strict=True)
    ]


def _clusters(
    logits: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    reference: str,
    names: Sequence[str],
    max_clusters: int,
    seed: int,
) -> dict[str, list[str]]:
    """Clusters of the reference split's probabilities; others go to the nearest of their class."""
    probs = {name: values.softmax(1) for name, values in logits.items()}
    found = cluster_by_class(
        probs[reference],
        targets[reference],
        max_clusters=max_clusters,
        generator=generator(seed, "audit: clusters"),
    )
    centres = torch.stack(
        [probs[reference][found.clusters == i].mean(0) for i in range(len(found.classes))]
    )
    labels = {}
    for name in probs:
        distances = torch.cdist(probs[name], centres)
        distances[targets[name].unsqueeze(1) != found.classes] = torch.inf
        cluster = distances.argmin(1) if name != reference else found.clusters
        place = [int((found.classes[:i] == label).sum()) for i, label in enumerate(found.classes)]
        number = torch.tensor(place)[cluster] + 1
        number[~(targets[name].unsqueeze(1) == found.classes).any(1)] = 1
        labels[name] = [
            f"{names[target]} #{i}"
            for target, i in zip(targets[name].tolist(), number.tolist(), strict=True)
        ]
    return labels


def _numbered(labels: Mapping[str, list[str]]) -> dict[str, Groups]:
    """Groups of the splits from names, numbered as a file of names is: in sorted order."""
    names = sorted({name for of_split in labels.values() for name in of_split})
    number = {name: i for i, name in enumerate(names)}
    return {
        split: Groups.from_ids([number[name] for name in of_split], names)
        for split, of_split in labels.items()
    }


def _discrepancies(
    split: AuditedSplit,
    class_names: Sequence[str],
    annotated: tuple[Tensor, tuple[str, ...]] | None,
    min_count: int,
) -> tuple[Discrepancy, ...]:
    """Attributes that come with more accuracy, of annotations, groups and pictures."""
    tables = [annotated] if annotated is not None else []
    if split.given is not None:
        tables.append(group_attributes(split.given, split.targets))
    with isolated(seed=0):
        pixels = small_pixels(split.dataset)
    if pixels is not None:
        tables.append(picture_attributes(pixels))
    tables = [table for table in tables if table[1]]
    if not tables:
        return ()
    report = rank_attributes(
        split.predictions,
        split.targets,
        torch.cat([shown for shown, _ in tables], 1),
        class_names=class_names,
        attribute_names=[name for _, names in tables for name in names],
        min_count=min_count,
    )
    return tuple(one for one in report.ranking if one.discrepancy > 0)
