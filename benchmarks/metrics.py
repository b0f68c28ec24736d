"""Time of one metric update, beside torchmetrics: ``python benchmarks/metrics.py``.

The contestants take turns, and the table has the fastest of many short rounds, the least disturbed
by whatever else the machine does: microseconds, and the ratio to torchmetrics' plain accuracy.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import partial

import torch
import torchmetrics
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_robust.metrics import (
    AdjustedAccuracy,
    GroupAccuracy,
    GroupGap,
    GroupWise,
    MeanGroupAccuracy,
    OverallAccuracy,
    WorstGroupAccuracy,
)

ROUNDS, CALLS = 150, 10
SETTINGS = [(32, 2, 4), (128, 2, 4), (128, 10, 4), (1024, 10, 4), (256, 1000, 512)]


def contestants(
    batch: int, num_classes: int, num_groups: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Return one update of every contestant, torchmetrics' plain accuracy first."""
    g = torch.Generator().manual_seed(0)
    preds = torch.randn(batch, num_classes, generator=g).to(device)
    target = torch.randint(num_classes, (batch,), generator=g).to(device)
    groups = torch.randint(num_groups, (batch,), generator=g).to(device)

    def micro(validate_args: bool = True) -> MulticlassAccuracy:
        return MulticlassAccuracy(num_classes, average="micro", validate_args=validate_args)

    plain, unchecked_plain = micro().to(device), micro(validate_args=False).to(device)
    each = [micro().to(device) for _ in range(num_groups)]

    def one_metric_a_group() -> None:
        for group in groups.unique().tolist():
            rows = groups == group
            each[group].update(preds[rows], target[rows])

    ours = {
        "GroupAccuracy": GroupAccuracy(num_groups),
        "GroupAccuracy, no validation": GroupAccuracy(num_groups, validate_args=False),
        "all six in a MetricCollection": MetricCollection(
            [
                GroupAccuracy(num_groups),
                WorstGroupAccuracy(num_groups),
                MeanGroupAccuracy(num_groups),
                AdjustedAccuracy([1.0] * num_groups),
                GroupGap(num_groups),
                OverallAccuracy(num_groups),
            ]
        ),
        "GroupWise(MulticlassAccuracy)": GroupWise(micro(), num_groups),
    }
    calls: dict[str, Callable[[], object]] = {
        "torchmetrics MulticlassAccuracy(micro)": partial(plain.update, preds, target),
        "torchmetrics, no validation": partial(unchecked_plain.update, preds, target),
    }
    for name, metric in ours.items():
        metric.to(device)
        calls[name] = partial(metric.update, preds, target, groups)
    calls["one MulticlassAccuracy a group, by hand"] = one_metric_a_group
    return calls


def microseconds(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Return the time of one call of each."""
    fastest = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            repeats = CALLS if "a group" not in name and "GroupWise" not in name else 1
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            fastest[name] = min(fastest[name], (time.perf_counter() - start) / repeats)
    return {name: 1e6 * seconds for name, seconds in fastest.items()}


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = f"torch {torch.__version__}, torchmetrics {torchmetrics.__version__}"
    print(f"{device.type} ({machine}), one thread, {versions}")
    for batch, num_classes, num_groups in SETTINGS:
        times = microseconds(contestants(batch, num_classes, num_groups, device), device)
        plain = next(iter(times.values()))
        print(f"\n{batch} examples, {num_classes} classes, {num_groups} groups")
        for name, time_ in times.items():
            print(f"  {name:42} {time_:10.1f} us   x {time_ / plain:7.2f}")


if __name__ == "__main__":
    main()
