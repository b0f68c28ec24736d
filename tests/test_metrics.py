from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection, MinMaxMetric
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryCalibrationError,
    BinaryConfusionMatrix,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MulticlassHammingDistance,
)
from torchmetrics.wrappers import ClasswiseWrapper

from lightning_robust.metrics import (
    AdjustedAccuracy,
    GroupAccuracy,
    GroupConfusionMatrix,
    GroupGap,
    GroupWise,
    MeanGroupAccuracy,
    OverallAccuracy,
    WorstGroup,
    WorstGroupAccuracy,
    group_counts_correct,
)

NUM_GROUPS = 5
WEIGHTS = [70, 10, 5, 300, 15]
Batch = tuple[Tensor, Tensor, Tensor]

MAKERS: dict[str, Callable[..., Metric]] = {
    "per_group": lambda **kwargs: GroupAccuracy(NUM_GROUPS, **kwargs),
    "worst": lambda **kwargs: WorstGroupAccuracy(NUM_GROUPS, **kwargs),
    "mean": lambda **kwargs: MeanGroupAccuracy(NUM_GROUPS, **kwargs),
    "adjusted": lambda **kwargs: AdjustedAccuracy(WEIGHTS, **kwargs),
    "gap": lambda **kwargs: GroupGap(NUM_GROUPS, **kwargs),
    "overall": lambda **kwargs: OverallAccuracy(NUM_GROUPS, **kwargs),
}


def batch_of(seed: int, groups: Sequence[int], size: int = 40, num_classes: int = 3) -> Batch:
    """Logits, targets, groups: the logits favour the target, and more so in later groups."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes, (size,), generator=g)
    ids = torch.tensor(groups)[torch.randint(len(groups), (size,), generator=g)]
    logits = torch.randn(size, num_classes, generator=g)
    logits[torch.arange(size), target] += 0.4 * ids
    return logits, target, ids


def batches_with_gaps() -> list[Batch]:
    """Batches that hold different groups; group 2 is in none of them."""
    return [batch_of(0, [0, 3]), batch_of(1, [4]), batch_of(2, [1, 3, 4]), batch_of(3, [0], size=1)]


def joined(batches: Sequence[Batch]) -> Batch:
    logits, target, groups = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return logits, target, groups


def reference(batches: Sequence[Batch]) -> dict[str, Any]:
    """Every accuracy by loops over groups and examples."""
    examples = [
        (int(row.argmax()) == int(label), int(group))
        for logits, target, groups in batches
        for row, label, group in zip(logits, target, groups, strict=True)
    ]
    accuracies: list[float] = []
    for group in range(NUM_GROUPS):
        hits = [hit for hit, other in examples if other == group]
        accuracies.append(sum(hits) / len(hits) if hits else math.nan)
    present = [group for group in range(NUM_GROUPS) if not math.isnan(accuracies[group])]
    weight = sum(WEIGHTS[group] for group in present)
    values = [accuracies[group] for group in present]
    return {
        "per_group": accuracies,
        "worst": min(values),
        "mean": sum(values) / len(values),
        "adjusted": sum(WEIGHTS[group] * accuracies[group] for group in present) / weight,
        "gap": max(values) - min(values),
        "overall": sum(hit for hit, _ in examples) / len(examples),
    }


def assert_same(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(
        actual.cpu(), torch.as_tensor(expected, dtype=torch.float32), equal_nan=True
    )


# --- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_counts_of_logits_equal_a_double_loop(dtype: torch.dtype) -> None:
    logits, target, groups = batch_of(0, [0, 3], size=200)
    logits = logits.to(dtype)
    correct, total = group_counts_correct(logits, target, groups, NUM_GROUPS)
    for group in range(NUM_GROUPS):
        hits = [
            max(range(3), key=row.tolist().__getitem__) == label
            for row, label, other in zip(logits, target.tolist(), groups.tolist(), strict=True)
            if other == group
        ]
        assert (correct[group].item(), total[group].item()) == (sum(hits), len(hits))
    assert correct.dtype == total.dtype == torch.int64


@pytest.mark.parametrize(
    ("preds", "threshold"),
    [
        (torch.tensor([-0.1, 0.2, 0.9, -3.0]), 0.0),
        (torch.tensor([[-0.1], [0.2], [0.9], [-3.0]], dtype=torch.float16), 0.0),
        (torch.tensor([0.4, 0.6, 0.9, 0.5]), 0.5),
        (torch.tensor([0, 1, 1, 0]), 0.0),
        (torch.tensor([0, 1, 1, 0], dtype=torch.int32), 0.0),
        (torch.tensor([False, True, True, False]), 0.0),
    ],
    ids=["logits", "column", "probabilities", "classes", "int32", "bool"],
)
@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0.0, 0.0, 1.0, 1.0]),
        torch.tensor([[0.0], [0.0], [1.0], [1.0]]),
    ],
    ids=["integer", "float", "column"],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_binary_heads_and_classes(
    preds: Tensor, threshold: float, target: Tensor, dtype: torch.dtype
) -> None:
    groups = torch.tensor([0, 2, 2, 2], dtype=dtype)
    correct, total = group_counts_correct(preds, target, groups, 3, threshold=threshold)
    assert correct.tolist() == [1, 0, 1]
    assert total.tolist() == [1, 0, 3]


def test_an_empty_batch_counts_nothing() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    correct, total = group_counts_correct(torch.zeros(0, 3), none, none, 2)
    assert correct.tolist() == total.tolist() == [0, 0]


def test_counting_needs_no_value_on_the_host_without_validation() -> None:
    # Tensors on the meta device have no values: anything that reads one raises.
    with torch.device("meta"):
        preds, ids = torch.zeros(8, 3), torch.zeros(8, dtype=torch.int64)
    correct, total = group_counts_correct(preds, ids, ids, 4, validate_args=False)
    assert correct.shape == total.shape == (4,)
    with pytest.raises(RuntimeError, match="meta"):
        group_counts_correct(preds, ids, ids, 4)


@pytest.mark.parametrize("bad", [-1, 5, -(2**63), 2**40])
def test_group_ids_out_of_range_are_refused(bad: int) -> None:
    logits, target, groups = batch_of(0, [0, 1])
    groups[7] = bad
    for metric in (GroupAccuracy(5), GroupWise(MulticlassAccuracy(3), 5)):
        with pytest.raises(ValueError, match=rf"groups must lie in \[0, num_groups=5\).*{bad}"):
            metric.update(logits, target, groups)
        assert metric.total.sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": torch.zeros(3, dtype=torch.int64)}, r"groups must have shape \(4,\)"),
        ({"groups": torch.zeros(4, 1, dtype=torch.int64)}, r"groups must have shape \(4,\)"),
        ({"groups": torch.zeros(4)}, "groups must be integers, got torch.float32"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"target must have shape \(4,\)"),
        ({"target": torch.zeros(4, 3)}, r"argmax\(dim=1\)"),
        ({"preds": torch.zeros(4, 3, 2)}, r"preds must be .* got shape \(4, 3, 2\)"),
        ({"preds": torch.zeros(4, 3, dtype=torch.int64)}, r"preds must be .* of torch.int64"),
        ({"preds": torch.zeros(4, 0)}, "preds must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    zeros = torch.zeros(4, dtype=torch.int64)
    good = {"preds": torch.zeros(4, 3), "target": zeros, "groups": zeros}
    with pytest.raises(ValueError, match=message):
        GroupAccuracy(2, validate_args=False).update(**(good | change))


# --- accuracies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_values_equal_loops_over_groups_and_examples(name: str) -> None:
    batches = batches_with_gaps()
    metric = MAKERS[name]()
    for batch in batches:
        metric.update(*batch)
    assert_same(metric.compute(), reference(batches)[name])


def test_a_group_that_is_absent_from_a_batch_moves_no_other_group() -> None:
    metric = GroupAccuracy(4)
    metric.update(torch.tensor([1, 1]), torch.tensor([1, 0]), groups=torch.tensor([0, 3]))
    assert metric.total.tolist() == [1, 0, 0, 1]
    assert_same(metric.compute(), [1.0, math.nan, math.nan, 0.0])


def test_group_accuracies_equal_scikit_learn() -> None:
    batches = batches_with_gaps()
    metric = GroupAccuracy(NUM_GROUPS)
    for batch in batches:
        metric.update(*batch)
    logits, target, groups = joined(batches)
    for group in range(NUM_GROUPS):
        rows = groups == group
        if rows.any():
            expected = accuracy_score(target[rows], logits[rows].argmax(1))
            assert metric.compute()[group].item() == pytest.approx(expected)
    assert metric.compute()[2].isnan()


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_evaluated_is_nan(name: str) -> None:
    metric = MAKERS[name]()
    none = torch.zeros(0, dtype=torch.int64)
    metric.update(none, none, none)
    assert metric.compute().isnan().all()


def test_gap_of_one_group_is_zero() -> None:
    metric = GroupGap(NUM_GROUPS)
    metric.update(*batch_of(0, [3]))
    assert metric.compute() == 0


@pytest.mark.parametrize("scale", [1, 1 / 400], ids=["counts", "frequencies"])
def test_adjusted_accuracy_of_a_balanced_split_is_the_accuracy_on_the_training_mixture(
    scale: float,
) -> None:
    # 100 examples a group, group g right g * 20 times; the training set is 1 : 3 : 0 : 0 : 4.
    groups = torch.arange(5).repeat_interleave(100)
    preds = (torch.arange(100).repeat(5) < groups * 20).long()
    metric = AdjustedAccuracy([value * scale for value in (50, 150, 0, 0, 200)])
    metric.update(preds, torch.ones_like(preds), groups)
    assert metric.compute().item() == pytest.approx((1 * 0.0 + 3 * 0.2 + 4 * 0.8) / 8)


def test_adjusted_accuracy_of_groups_of_no_weight_is_nan() -> None:
    metric = AdjustedAccuracy(torch.tensor([0, 10]))
    metric.update(torch.tensor([1]), torch.tensor([1]), torch.tensor([0]))
    assert metric.compute().isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_module_cast_to_half_precision_keeps_weights_and_counts(dtype: torch.dtype) -> None:
    module = torch.nn.ModuleDict({name: make() for name, make in MAKERS.items()}).to(dtype)
    batches = batches_with_gaps()
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)  # as Lightning's true half precision does inside a step
        for logits, target, groups in batches:
            for metric in module.values():
                metric.update(logits, target, groups)
        values = {name: metric.compute() for name, metric in module.items()}
    finally:
        torch.set_default_dtype(default)
    for name, expected in reference(batches).items():
        assert_same(values[name], expected)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [1, math.nan], [[1, 2]], 3.0])
def test_bad_weights_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match="weights must be a vector"):
        AdjustedAccuracy(weights)


@pytest.mark.parametrize("num_groups", [0, -1, 2.0, True, "4"])
def test_bad_numbers_of_groups_are_refused(num_groups: Any) -> None:
    for make in (GroupAccuracy, lambda n: GroupWise(BinaryAUROC(), n)):
        with pytest.raises(ValueError, match="num_groups must be an integer >= 1"):
            make(num_groups)


# --- as metrics of torchmetrics and Lightning -----------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_forward_gives_the_batch_and_accumulates(name: str) -> None:
    batches = batches_with_gaps()
    metric = MAKERS[name]()
    for batch in batches:
        assert_same(metric(*batch), reference([batch])[name])
    assert_same(metric.compute(), reference(batches)[name])


@pytest.mark.parametrize("name", MAKERS)
def test_reset_forgets(name: str) -> None:
    first, second = batch_of(0, [0, 1]), batch_of(1, [1, 4])
    metric = MAKERS[name]()
    metric.update(*first)
    metric.compute()
    metric.reset()
    metric.update(*second)
    assert_same(metric.compute(), reference([second])[name])


@pytest.mark.parametrize("name", MAKERS)
def test_pickled_copies_go_on_counting(name: str) -> None:
    batches = batches_with_gaps()
    metric = MAKERS[name]()
    metric.update(*batches[0])
    copy = pickle.loads(pickle.dumps(metric))
    for batch in batches[1:]:
        copy.update(*batch)
    assert_same(copy.compute(), reference(batches)[name])
    assert metric.total.sum() == len(batches[0][2])


@pytest.mark.parametrize("name", MAKERS)
def test_two_ranks_add_up_to_one_process(name: str) -> None:
    batches = batches_with_gaps()
    other = MAKERS[name]()
    for batch in batches[2:]:
        other.update(*batch)
    # torchmetrics gathers states in the order they were added: stand in for the other rank's.
    states = iter((other.correct, other.total))
    metric = MAKERS[name](
        dist_sync_fn=lambda state, group: [state, next(states)],
        distributed_available_fn=lambda: True,
    )
    for batch in batches[:2]:
        metric.update(*batch)
    assert_same(metric.compute(), reference(batches)[name])


def test_a_collection_counts_once() -> None:
    batches = batches_with_gaps()
    collection = MetricCollection({name: make() for name, make in MAKERS.items()})
    for logits, target, groups in batches:
        collection.update(preds=logits, target=target, groups=groups)
    assert [sorted(names) for names in collection.compute_groups.values()] == [sorted(MAKERS)]
    for name, expected in reference(batches).items():
        assert_same(collection.compute()[name], expected)
    collection.reset()
    collection.update(*batches[0])
    for name, expected in reference(batches[:1]).items():
        assert_same(collection.compute()[name], expected)


def test_states_reset_in_inference_mode_serve_training() -> None:
    batch = batch_of(0, [0, 1])
    metric = WorstGroupAccuracy(NUM_GROUPS)
    with torch.inference_mode():
        metric.update(*batch)
        metric.reset()
    metric.update(*batch)
    assert_same(metric.compute(), reference([batch])["worst"])


def test_directions_for_checkpoints_and_tuners() -> None:
    better = {name: make().higher_is_better for name, make in MAKERS.items()}
    assert better == {name: name != "gap" for name in MAKERS}
    assert GroupWise(BinaryAUROC(), 2).higher_is_better
    assert not WorstGroup(BinaryCalibrationError(), 2).higher_is_better


class LogsMetrics(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.worst = WorstGroupAccuracy(NUM_GROUPS)
        self.worst_f1 = WorstGroup(MulticlassF1Score(num_classes=3), NUM_GROUPS)
        self.rest = MetricCollection({"mean": MAKERS["mean"](), "adjusted": MAKERS["adjusted"]()})

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for metric in (self.worst, self.worst_f1, self.rest):
            metric(*batch)
        self.log("val/worst", self.worst)
        self.log("val/worst_f1", self.worst_f1, on_step=False, on_epoch=True)
        self.log_dict(self.rest)


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning"
)
def test_lightning_logs_them_as_objects(tmp_path: Path) -> None:
    batches = batches_with_gaps()
    logits, target, groups = joined(batches)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loader = DataLoader(TensorDataset(logits, target, groups), batch_size=16)
    (logged,) = trainer.validate(LogsMetrics(), loader, verbose=False)
    expected = reference(batches)
    f1 = min(
        f1_score(target[rows], logits[rows].argmax(1), average="macro")
        for rows in (groups == group for group in groups.unique())
    )
    assert logged == pytest.approx(
        {
            "val/worst": expected["worst"],
            "val/worst_f1": f1,
            "mean": expected["mean"],
            "adjusted": expected["adjusted"],
        }
    )


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    yield pyplot
    pyplot.close("all")


def test_plots_of_scalars_and_over_time(pyplot: Any) -> None:
    for metric in (
        GroupAccuracy(2),
        GroupWise(MulticlassAccuracy(3), 2),
        GroupGap(2),
        WorstGroup(MulticlassAccuracy(3), 2),
    ):
        values = [metric(*batch_of(seed, [0, 1])) for seed in range(3)]
        one = isinstance(metric, GroupGap | WorstGroup)
        _, axis = metric.plot(values)
        assert len(axis.lines) == (1 if one else 2)
        if one:
            assert len(metric.plot()[1].lines) == 1


@pytest.mark.parametrize(
    ("metric", "worst"),
    [
        (GroupAccuracy(4), 3),
        (GroupWise(MulticlassAccuracy(3, average="micro"), 4), 3),
        (GroupWise(MulticlassHammingDistance(3, average="micro"), 4), 3),  # lower is better
    ],
)
def test_bars_are_the_values_with_the_worst_marked(metric: Any, worst: int, pyplot: Any) -> None:
    target, groups = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 1, 1, 3, 3])
    metric.update(torch.tensor([0, 1, 2, 1, 0, 0]), target, groups)  # 1, 1/2, none and 0
    values = metric.compute()
    figure, axis = metric.plot(labels=["sky", "sea", "nowhere", "land"])
    assert axis.figure is figure
    assert [bar.get_width() for bar in axis.patches] == pytest.approx(values.nan_to_num(0).tolist())
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["sky", "sea", "nowhere", "land"]
    texts = [text.get_text() for text in axis.texts]
    expected = ["no examples" if v != v else f"{v:.3f}" for v in values.tolist()]
    expected[worst] += " (worst)"
    assert texts == expected
    colours = [bar.get_facecolor() for bar in axis.patches]
    assert [colours.count(colour) for colour in colours] == [3, 3, 3, 1]
    _, given = pyplot.subplots()
    none, same = metric.plot(values, given)
    assert none is None
    assert same is given
    assert [tick.get_text() for tick in given.get_yticklabels()] == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="labels must be 4 names, got 1"):
        metric.plot(labels=["sky"])


# --- confusion within groups ----------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [None, "true"])
def test_confusion_within_groups_equals_scikit_learn(normalize: str | None) -> None:
    batches = batches_with_gaps()
    metric = GroupConfusionMatrix(NUM_GROUPS, 3, normalize=normalize)
    for batch in batches:
        metric.update(*batch)
    found = metric.compute()
    logits, target, groups = joined(batches)
    for group in range(NUM_GROUPS):
        rows = groups == group
        counts = torch.zeros(3, 3)
        if rows.any():
            counts = torch.tensor(
                confusion_matrix(target[rows], logits[rows].argmax(1), labels=[0, 1, 2])
            )
        expected = counts if normalize is None else counts / counts.sum(1, keepdim=True)
        torch.testing.assert_close(found[group].double(), expected.double(), equal_nan=True)
    if normalize is None:
        right = found.diagonal(dim1=1, dim2=2).sum(1) / found.sum((1, 2))
        assert_same(right, reference(batches)["per_group"])


def test_confusion_is_drawn_a_row_for_each_class_of_each_group(pyplot: Any) -> None:
    metric = GroupConfusionMatrix(3, 2)
    target, groups = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 2, 2])
    metric.update(torch.tensor([0, 0, 1, 1, 0]), target, groups)
    figure, axis = metric.plot(labels=["land", "water"], group_labels=["a", "b", "c"])
    assert axis.figure is figure
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["a", "c (worst)"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["land", "water"]
    assert [text.get_text() for text in axis.texts] == ["2", "1", "1", "1"]
    [image] = axis.images
    assert image.get_array().tolist() == [[pytest.approx(2 / 3), pytest.approx(1 / 3)], [0.5, 0.5]]
    assert [frame.get_xy() for frame in axis.patches] == [(-0.5, -0.5), (0.5, 0.5)]

    metric.update(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))  # a's second class
    _, axis = metric.plot(add_text=False)
    assert [tick.get_text() for tick in axis.get_yticklabels()] == [
        "0: 0 (worst)",
        "0: 1 (worst)",
        "2: 1",
    ]
    assert not axis.texts
    with pytest.raises(ValueError, match="val must be one result"):
        metric.plot(torch.zeros(3, 2))


def test_confusion_refuses_what_it_cannot_count() -> None:
    metric = GroupConfusionMatrix(2, 2)
    ids = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="target must be classes in"):
        metric.update(ids, torch.tensor([0, 2]), ids)
    with pytest.raises(ValueError, match="normalize must be"):
        GroupConfusionMatrix(2, 2, normalize="all")
    with pytest.raises(ValueError, match="num_classes must be an integer >= 2"):
        GroupConfusionMatrix(2, 1)


# --- any metric per group -------------------------------------------------------------------------


def binary(batch: Batch) -> Batch:
    logits, target, groups = batch
    return (logits[:, 1] - logits[:, 0]).sigmoid(), (target > 0).long(), groups


def per_group(score: Callable[..., float], batches: Sequence[Batch]) -> list[float]:
    preds, target, groups = joined(batches)
    rows = [groups == group for group in range(NUM_GROUPS)]
    return [float(score(target[row], preds[row])) if row.any() else math.nan for row in rows]


def binary_batches() -> list[Batch]:
    return [binary(batch) for batch in batches_with_gaps()]


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        (BinaryAUROC(), roc_auc_score),
        (BinaryAveragePrecision(), average_precision_score),
    ],
)
def test_stored_scores_per_group_equal_scikit_learn(metric: Metric, score: Any) -> None:
    batches = binary_batches()
    grouped = GroupWise(metric, NUM_GROUPS)
    for batch in batches:
        grouped.update(*batch)
    expected = per_group(score, batches)
    assert_same(grouped.compute(), expected)
    assert not metric.update_called

    worst = WorstGroup(metric, NUM_GROUPS)
    for batch in batches:
        worst.update(*batch)
    assert_same(worst.compute(), min(value for value in expected if value == value))


def test_counts_per_group_equal_scikit_learn() -> None:
    batches = batches_with_gaps()
    grouped = GroupWise(MulticlassF1Score(num_classes=3, average="macro"), NUM_GROUPS)
    for batch in batches:
        grouped.update(*batch)

    def macro_f1(target: Tensor, logits: Tensor) -> float:
        return float(f1_score(target, logits.argmax(1), average="macro"))

    assert_same(grouped.compute(), per_group(macro_f1, batches))


def test_worst_is_the_highest_where_lower_is_better() -> None:
    batches = binary_batches()
    grouped = GroupWise(BinaryCalibrationError(), NUM_GROUPS)
    worst = WorstGroup(BinaryCalibrationError(), NUM_GROUPS)
    for batch in batches:
        grouped.update(*batch)
        worst.update(*batch)
    values = grouped.compute()
    assert_same(worst.compute(), max(value for value in values.tolist() if value == value))
    assert worst.compute() > 0


class NaNOnNegatives(BinaryAUROC):
    def compute(self) -> Tensor:
        return torch.tensor(math.nan if (torch.cat(list(self.preds)) < 0.2).any() else 1.0)


def test_worst_does_not_hide_a_group_on_which_the_metric_is_undefined() -> None:
    worst = WorstGroup(NaNOnNegatives(), 3)
    worst.update(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), torch.tensor([0, 2]))
    assert worst.compute().isnan()


def test_nothing_evaluated_is_nan_and_quiet() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for make in (GroupWise, WorstGroup):
        metric = make(BinaryAUROC(), 3)
        metric.update(none.float(), none, none)
        assert metric.compute().isnan().all()


def test_grouped_forward_reset_and_pickle() -> None:
    batches = binary_batches()[:3]  # the last one is a single example, which has no AUROC
    grouped = GroupWise(BinaryAUROC(), NUM_GROUPS)
    for batch in batches:
        assert_same(grouped(*batch), per_group(roc_auc_score, [batch]))
    grouped = pickle.loads(pickle.dumps(grouped))
    assert_same(grouped.compute(), per_group(roc_auc_score, batches))
    grouped.reset()
    grouped.update(*batches[0])
    assert_same(grouped.compute(), per_group(roc_auc_score, batches[:1]))


def test_wrapped_metric_is_left_alone() -> None:
    first, second = binary(batch_of(0, [0, 1])), binary(batch_of(1, [0, 1]))
    metric = BinaryAUROC()
    metric.update(*first[:2])
    grouped = GroupWise(metric, NUM_GROUPS)
    grouped.update(*second)
    assert_same(grouped.compute(), per_group(roc_auc_score, [second]))
    assert grouped.total.tolist() == [(second[2] == group).sum() for group in range(NUM_GROUPS)]
    assert metric.compute().item() == pytest.approx(roc_auc_score(first[1], first[0]))


def test_grouped_metrics_in_a_collection() -> None:
    batches = binary_batches()
    collection = MetricCollection(
        {
            "auroc": GroupWise(BinaryAUROC(), NUM_GROUPS),
            "worst_auroc": WorstGroup(BinaryAUROC(), NUM_GROUPS),
            "precision": GroupWise(BinaryAveragePrecision(), NUM_GROUPS),
            "confusing": GroupWise(BinaryCalibrationError(), NUM_GROUPS),
            "accuracy": GroupAccuracy(NUM_GROUPS, threshold=0.5),
        }
    )
    for batch in batches:
        collection.update(*batch)
    assert sorted(map(len, collection.compute_groups.values())) == [1, 1, 3]
    values = collection.compute()
    assert_same(values["auroc"], per_group(roc_auc_score, batches))
    assert_same(values["precision"], per_group(average_precision_score, batches))
    assert values["worst_auroc"] == values["auroc"][values["auroc"].isfinite()].min()


@pytest.mark.parametrize(
    "metric",
    [
        "BinaryAUROC",
        MetricCollection([BinaryAUROC()]),
        MinMaxMetric(BinaryAUROC()),
        ClasswiseWrapper(MulticlassAccuracy(3, average=None)),
        BinaryAUROC() + 1,
    ],
    ids=["name", "collection", "min_max", "classwise", "sum"],
)
def test_metrics_that_cannot_be_kept_per_group_are_refused(metric: Any) -> None:
    with pytest.raises(ValueError, match="metric must be a torchmetrics metric whose states add"):
        GroupWise(metric, 2)


def test_vectors_per_group_are_refused() -> None:
    grouped = GroupWise(MulticlassAccuracy(3, average=None), 2)
    grouped.update(*batch_of(0, [0, 1]))
    with pytest.raises(ValueError, match="metric must compute one number a group"):
        grouped.compute()
    with pytest.raises(ValueError, match="metric must say whether higher_is_better"):
        WorstGroup(BinaryConfusionMatrix(), 2)
    with pytest.raises(ValueError, match="target must have as many rows as preds, 40, got 39"):
        grouped.update(torch.zeros(40, 3), *(ids[:39] for ids in batch_of(0, [0])[1:]))


# --- two processes --------------------------------------------------------------------------------

# Uneven ranks: group 0 is on rank 0 only, group 3 on rank 1 only, group 4 comes later, 2 never.
RANKS = [
    [batch_of(10, [0, 1]), batch_of(11, [0])],
    [batch_of(12, [1, 3], size=30)],
]
LATER = [batch_of(13, [0, 1, 4]), batch_of(14, [1, 3])]


def _rank(rank: int, folder: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    accuracies = MetricCollection({name: make() for name, make in MAKERS.items()})
    scores = MetricCollection(
        {
            "auroc": GroupWise(BinaryAUROC(), NUM_GROUPS),
            "worst_auroc": WorstGroup(BinaryAUROC(), NUM_GROUPS),
            "binned_auroc": GroupWise(BinaryAUROC(thresholds=1001), NUM_GROUPS),
        }
    )
    multiclass = GroupWise(MulticlassAUROC(num_classes=3), NUM_GROUPS)
    results = []
    for batches in (RANKS[rank], [LATER[rank]]):
        for batch in batches:
            accuracies(*batch)
            scores.update(*binary(batch))
            logits, target, groups = batch
            multiclass.update(logits.softmax(1), target, groups)
        values = {**accuracies.compute(), **scores.compute()}
        results.append({**values, "multiclass_auroc": multiclass.compute()})
    torch.distributed.destroy_process_group()
    torch.save(results, f"{folder}/rank{rank}.pt")


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12 on
def test_two_processes_equal_one(tmp_path: Path) -> None:
    # Forked: fresh interpreters would spend most of a busy machine's minute importing.
    torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")

    def multiclass(target: Tensor, logits: Tensor) -> float:
        return float(roc_auc_score(target, logits.softmax(1), multi_class="ovr"))

    seen = [*RANKS[0], *RANKS[1]]
    for step, batches in enumerate((seen, [*seen, *LATER])):
        auroc = per_group(roc_auc_score, [binary(batch) for batch in batches])
        expected = {
            **reference(batches),
            "auroc": auroc,
            "worst_auroc": min(value for value in auroc if value == value),
            "multiclass_auroc": per_group(multiclass, batches),
        }
        for rank in range(2):
            values = torch.load(tmp_path / f"rank{rank}.pt")[step]
            binned = values.pop("binned_auroc")
            torch.testing.assert_close(
                binned, torch.tensor(auroc), atol=5e-3, rtol=0, equal_nan=True
            )
            assert values.keys() == expected.keys()
            for name, value in values.items():
                assert_same(value, expected[name])
