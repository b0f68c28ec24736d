"""Speed and accuracy of `lightning_robust.functional.clustering` beside scikit-learn's.

Run `python benchmarks/clustering.py`, on one thread, about eight minutes; `--output FILE` writes
the table that is printed. Times are CPU seconds of this process, ours and scikit-learn's from the
same run, so what counts are the ratios. Where scikit-learn would take too long, it is timed on some
of the values of k or of the classes, always with all points, and scaled: marked with `*`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import sklearn
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor

from lightning_robust.functional.clustering import (
    choose_num_clusters,
    cluster_by_class,
    kmeans,
    silhouette,
)

KS = range(2, 11)
Result = TypeVar("Result")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def softmax_outputs(n: int, classes: int) -> Tensor:
    """Softmax outputs of one class, of which the network takes 5 % for another class."""
    logits = torch.randn(n, classes, generator=seeded())
    logits[:, 0] += 3
    logits[: n // 20, 0] -= 3
    logits[: n // 20, 1] += 4
    return (1.5 * logits).softmax(1)


def peak_memory() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def kmeans_rows(points: Tensor, name: str) -> list[str]:
    """All nine k; inertia relative to scikit-learn's with n_init=10."""
    array = points.numpy()

    def ours() -> list[float]:
        # What choosing k costs without the silhouettes: nine separate calls, so an upper bound.
        return [kmeans(points, k, generator=seeded(k)).inertia for k in KS]

    def theirs(n_init: int) -> list[float]:
        return [KMeans(k, n_init=n_init, random_state=k).fit(array).inertia_ for k in KS]

    reference, slow = timed(lambda: theirs(10))
    rows = [f"| k-means, {name} | scikit-learn, n_init 10 | {slow:.2f} | 1 | inertia 1 |"]
    for label, run in (("scikit-learn, n_init 1", lambda: theirs(1)), ("ours", ours)):
        inertia, seconds = timed(run)
        ratio = np.array(inertia) / reference
        quality = f"inertia {ratio.mean():.4f}, worst {ratio.max():.4f}"
        rows.append(f"| | {label} | {seconds:.2f} | {slow / seconds:.1f}x | {quality} |")
    return rows


def silhouette_rows(large: Tensor) -> list[str]:
    """Nine clusterings of the same points."""
    n = len(large)
    assignments = torch.stack([kmeans(large, k, generator=seeded(k)).assignment for k in KS])
    # First of all, so that nobody else's peak of memory hides ours.
    before = peak_memory()
    exact, slowest = timed(lambda: silhouette(large, assignments, generator=seeded(), exact=True))
    memory = peak_memory() - before

    small, labels = large[:20_000], assignments[:, :20_000]
    exact_small, fast = timed(
        lambda: silhouette(small, labels, generator=seeded(), exact=True).tolist()
    )
    scored = (2, 5, 10)
    reference, slow = timed(
        lambda: [silhouette_score(small.numpy(), labels[k - 2].numpy()) for k in scored]
    )
    slow_each = slow / len(scored)
    error = max(abs(exact_small[k - 2] - r) for k, r in zip(scored, reference, strict=True))
    rows = [
        f"| silhouettes, n 20,000, d 2 | scikit-learn | {9 * slow_each:.1f}* | 1 | |",
        f"| | ours, exact | {fast:.2f} | {9 * slow_each / fast:.0f}x | difference {error:.0e} |",
    ]

    choice, choosing = timed(lambda: choose_num_clusters(large, KS, generator=seeded()))
    # One k, on all points: scaling up from 20,000 would flatter us.
    large_score, one = timed(lambda: silhouette_score(large.numpy(), assignments[3].numpy()))
    scaled = 9 * one
    draws = [
        timed(partial(silhouette, large, assignments, generator=seeded(seed))) for seed in range(10)
    ]
    errors = torch.stack([values for values, _ in draws]) - exact
    sampled = float(np.median([seconds for _, seconds in draws]))
    rows += [
        f"| silhouettes, n {n:,}, d 2 | scikit-learn | {scaled:.0f}* | 1 | |",
        f"| | ours, exact | {slowest:.1f} | {scaled / slowest:.0f}x | difference "
        f"{abs(float(exact[3]) - large_score):.0e}, peak memory +{memory:.0f} MB |",
        f"| | ours, sampled | {sampled:.2f} | {scaled / sampled:.0f}x | error over 10 samples and "
        f"nine k: largest {float(errors.abs().max()):.4f}, rms {float(errors.std()):.4f} |",
        f"| choice of k, n {n:,}, d 2 | ours | {choosing:.2f} | | k = {choice.k} |",
    ]
    return rows


def class_rows(classes: int, members: int, d: int, timed_classes: int) -> list[str]:
    """Clusters and their number for many small classes."""
    points = torch.randn(classes * members, d, generator=seeded())
    targets = torch.arange(classes).repeat(members)

    def theirs() -> None:
        for label in range(timed_classes):
            own = points[targets == label].numpy()
            for k in KS:
                silhouette_score(own, KMeans(k, n_init=10, random_state=0).fit_predict(own))

    _, fast = timed(lambda: cluster_by_class(points, targets, generator=seeded()))
    _, part = timed(theirs)
    slow = part * classes / timed_classes
    name = f"{classes:,} classes of {members}, d {d}, choice of k"
    return [
        f"| {name} | scikit-learn | {slow:.0f}* | 1 | |",
        f"| | ours | {fast:.1f} | {slow / fast:.1f}x | |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="file that receives the table")
    output = parser.parse_args().output
    torch.set_num_threads(1)
    large = softmax_outputs(140_000, 2)
    choose_num_clusters(large[:500], KS, generator=seeded())  # warm up
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one thread, Python "
        f"{platform.python_version()}, torch {torch.__version__}, scikit-learn "
        f"{sklearn.__version__}; load of the machine {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores. `*`: timed on some k or classes and scaled.",
        "",
        "| nine values of k, 2 to 10 | | CPU seconds | speed | |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    parts: list[Callable[[], list[str]]] = [
        partial(silhouette_rows, large),
        partial(kmeans_rows, large, "n 140,000, d 2"),
        partial(kmeans_rows, softmax_outputs(20_000, 100), "n 20,000, d 100"),
        partial(class_rows, classes=1_000, members=100, d=10, timed_classes=20),
    ]
    for part in parts:
        rows = part()
        print("\n".join(rows), flush=True)
        lines += rows
    if output:
        output.write_text(
            "\n".join(["# Clustering (`python benchmarks/clustering.py`)", "", *lines, ""])
        )


if __name__ == "__main__":
    main()
