"""Speed, memory and quality of `functional.facility_location` beside other packages.

Run `python benchmarks/selection.py`, on one thread, where the peers are
installed (apricot-select with scikit-learn and numba, submodlib-py, kmedoids; those that are not
are left out). Writes `selection.json`, `selection.md` and `selection.png` to `--output`. `--large`
adds n = 50,000 and 100,000 of ours. A run that was cut off goes on where it stopped.

Every measurement is a process of its own: CPU seconds of the calling process (not wall-clock: other
work may share the machine) after a small run that warms up, and the rise of its peak resident
memory over that after the warm-up. Up to n = 5,000 the methods of a case take turns, `--repeats`
times, and the fastest run of each counts. *cost* is the sum of distances to the nearest
medoid, relative to exact greedy picks. The objective ratio is that of F with c0 twice the radius of
the data.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import heapq
import importlib.metadata
import importlib.util
import json
import math
import platform
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_robust.functional.facility_location import (
    facility_location,
    facility_location_batch,
    greedi,
)

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "apricot-select", "submodlib-py", "kmedoids", "numba", "scikit-learn")
PARTS = 8
Array = npt.NDArray[np.float32]


def gradients(n: int, d: int) -> Tensor:
    """Rows p - y of one class in the middle of training."""
    logits = 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    logits[:, 0] += 3
    rows = logits.softmax(dim=1)
    rows[:, 0] -= 1
    return rows


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- ours, and peers: each takes rows and k, and returns the picks -------------------------------


def submodlib_dense(rows: Array, k: int) -> list[int]:
    """As EPIC and CREST call it; its kernel is exp(-d / number of features)."""
    import submodlib

    function = submodlib.FacilityLocationFunction(
        n=len(rows), mode="dense", data=rows, metric="euclidean"
    )
    return [i for i, _ in _quiet_maximise(function, k)]


def submodlib_given(rows: Array, k: int) -> list[int]:
    """The matrix of similarities given."""
    import submodlib

    function = submodlib.FacilityLocationFunction(
        n=len(rows), mode="dense", sijs=_similarities(rows), separate_rep=False
    )
    return [i for i, _ in _quiet_maximise(function, k)]


def _quiet_maximise(function: object, k: int) -> list[tuple[int, float]]:
    return function.maximize(  # type: ignore[attr-defined,no-any-return]
        budget=k,
        optimizer="LazyGreedy",
        stopIfZeroGain=False,
        stopIfNegativeGain=False,
        show_progress=False,
    )


def apricot_lazy(rows: Array, k: int) -> list[int]:
    import apricot

    selection = apricot.FacilityLocationSelection(k, metric="precomputed", optimizer="lazy")
    return [int(i) for i in selection.fit(_similarities(rows)).ranking]


def fasterpam(rows: Array, k: int) -> list[int]:
    import kmedoids
    from sklearn.metrics import pairwise_distances

    return [int(i) for i in kmedoids.fasterpam(pairwise_distances(rows), k, random_state=0).medoids]


def numpy_lazy(rows: Array, k: int) -> list[int]:
    """Lazy greedy picks over a full matrix, as CORDS and DeepCore have them."""
    similar = _similarities(rows)
    best = np.zeros(len(rows), dtype=np.float32)
    heap = [(-gain, i, 0) for i, gain in enumerate(similar.sum(axis=0).tolist())]
    heapq.heapify(heap)
    picks: list[int] = []
    while len(picks) < k:
        _, i, round_ = heapq.heappop(heap)
        if round_ == len(picks):
            picks.append(i)
            np.maximum(best, similar[i], out=best)
        else:
            heapq.heappush(heap, (-float(np.maximum(similar[i] - best, 0).sum()), i, len(picks)))
    return picks


def _similarities(rows: Array) -> Array:
    from sklearn.metrics import pairwise_distances

    distances = pairwise_distances(rows)
    return np.asarray(distances.max() - distances, dtype=np.float32)


def ours(rows: Array, k: int, **options: object) -> list[int]:
    features = torch.from_numpy(rows)
    return facility_location(features, k, **options).indices.tolist()  # type: ignore[arg-type]


METHODS: dict[str, tuple[str | None, Callable[[Array, int], list[int]]]] = {
    "ours": (None, ours),
    "ours, float64": (None, lambda x, k: ours(x, k, dtype=torch.float64)),
    "ours, stochastic": (None, lambda x, k: ours(x, k, method="stochastic", generator=seeded())),
    "ours, fraction .2": (None, lambda x, k: ours(x, k, fraction=0.2, generator=seeded())),
    f"ours, greedi of {PARTS}": (
        None,
        lambda x, k: greedi(torch.from_numpy(x).chunk(PARTS), k).indices.tolist(),
    ),
    "random picks": (
        None,
        lambda x, k: torch.randperm(len(x), generator=seeded())[:k].tolist(),
    ),
    "authors' path (submodlib)": ("submodlib", submodlib_dense),
    "submodlib, matrix given": ("submodlib", submodlib_given),
    "apricot, lazy": ("apricot", apricot_lazy),
    "FasterPAM": ("kmedoids", fasterpam),
    "numpy, lazy": ("sklearn", numpy_lazy),
}


# --- one measurement, in a process of its own ----------------------------------------------------


def resident(peak: bool) -> float:
    """MB, now or at most since the last call with `peak` false."""
    try:
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(status.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) / 1024


def measure(name: str, n: int, k: int, d: int, batches: int) -> dict[str, float]:
    """Seconds a problem, MB, and cost of the picks; a batch of problems if `batches`."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run = METHODS[name][1]
    run(gradients(300, d).numpy(), 10)
    rows = gradients(n * max(1, batches), d)
    problems = [part.numpy() for part in rows.split(n)]
    before, start = resident(peak=False), time.process_time()
    if batches and name == "ours":
        picks = facility_location_batch(rows.view(batches, n, d), k).indices[-1].tolist()
    else:
        picks = [run(problem, k) for problem in problems][-1]
    seconds = time.process_time() - start
    memory = resident(peak=True) - before
    cost = sum(
        float(torch.cdist(some, rows[-n:][picks]).amin(dim=1).sum())
        for some in rows[-n:].split(1024)
    )
    return {"seconds": seconds / max(1, batches), "memory": memory, "cost": cost}


def child(name: str, n: int, k: int, d: int, batches: int) -> dict[str, float]:
    arguments = json.dumps([name, n, k, d, batches])
    command = [sys.executable, __file__, "--child", arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


# --- the benchmark -------------------------------------------------------------------------------

EXACT = ["ours", "authors' path (submodlib)", "submodlib, matrix given", "apricot, lazy"]
EVERY = [*EXACT, "FasterPAM", "numpy, lazy"]
RANDOM = ["ours, stochastic", "ours, fraction .2", f"ours, greedi of {PARTS}", "random picks"]
CASES: list[tuple[str, int, int, int, int, list[str]]] = [
    # title, n, k, d, problems in a batch (0: one problem), methods
    ("5,000, k 500, d 10", 5000, 500, 10, 0, [*EVERY, "ours, float64", *RANDOM]),
    ("5,000, k 1,500, d 10", 5000, 1500, 10, 0, EXACT),
    ("5,000, k 500, d 512", 5000, 500, 512, 0, EXACT),
    ("16 x 1,000, k 64, d 100", 1000, 64, 100, 16, EXACT[:3]),
    ("4 x 6,000, k 128, d 10", 6000, 128, 10, 4, ["ours", "authors' path (submodlib)"]),
    ("1,250, k 125, d 10", 1250, 125, 10, 0, ["ours"]),
    ("2,500, k 250, d 10", 2500, 250, 10, 0, ["ours"]),
    ("10,000, k 1,000, d 10", 10000, 1000, 10, 0, ["ours"]),
    ("20,000, k 2,000, d 10", 20000, 2000, 10, 0, ["ours", "apricot, lazy"]),
]
LARGE = [
    ("50,000, k 500, d 10", 50000, 500, 10, 0, ["ours", *RANDOM]),
    ("100,000, k 1,000, d 10", 100000, 1000, 10, 0, ["ours", *RANDOM]),
]
Row = dict[str, float | int | str]


def radius(n: int, d: int) -> float:
    rows = gradients(n, d)
    return float(torch.linalg.vector_norm(rows - rows.mean(dim=0), dim=1).max())


def benchmark(
    cases: list[tuple[str, int, int, int, int, list[str]]], repeats: int, kept: Path
) -> list[Row]:
    """All rows; those in the file `kept` are not measured again, new ones are added to it."""
    rows: list[Row] = json.loads(kept.read_text()) if kept.exists() else []
    for title, n, k, d, batches, names in cases:
        if any(r["case"] == title for r in rows):
            continue
        packages = {name: METHODS[name][0] for name in names}
        names = [m for m, p in packages.items() if not p or importlib.util.find_spec(p)]
        turns = [
            {name: child(name, n, k, d, batches) for name in names}
            for _ in range(repeats if n <= 5000 else 1)
        ]
        best = {name: min((t[name] for t in turns), key=lambda t: t["seconds"]) for name in names}
        base = best[names[0]]
        for name, found in best.items():
            worth = 2 * n * radius(n, d)
            row: Row = {
                "case": title,
                "n": n,
                "k": k,
                "d": d,
                "batches": batches,
                "method": name,
                **found,
                "speed": found["seconds"] / base["seconds"],
                "relative_cost": found["cost"] / base["cost"],
                "objective_ratio": (worth - found["cost"]) / (worth - base["cost"]),
            }
            print(as_line(row), flush=True)
            rows.append(row)
        kept.write_text(json.dumps(rows))
    return rows


def cuda_rows() -> list[Row]:
    """The same picks on a GPU: wall-clock seconds and peak memory of the device."""
    rows: list[Row] = []
    for n, k in ((5000, 500), (20000, 2000), (100000, 1000)):
        features = gradients(n, 10).cuda()
        facility_location(features[:1000], 10)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        facility_location(features, k)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        memory = (torch.cuda.max_memory_allocated() - before) / 2**20
        name = f"ours, {torch.cuda.get_device_name()}"
        rows.append(
            {
                "case": f"{n:,}, k {k:,}, d 10, CUDA",
                "n": n,
                "k": k,
                "d": 10,
                "batches": 0,
                "method": name,
                "seconds": seconds,
                "memory": memory,
                "cost": math.nan,
                "speed": 1.0,
                "relative_cost": 1.0,
                "objective_ratio": 1.0,
            }
        )
        print(as_line(rows[-1]), flush=True)
    return rows


HEADER = (
    "| n, k, d | | CPU seconds | ours is faster by | memory, MB | cost | objective |\n"
    "|---|---|---|---|---|---|---|"
)


def as_line(row: Row) -> str:
    return (
        f"| {row['case']} | {row['method']} | {row['seconds']:.3f} | {row['speed']:.1f}x "
        f"| +{row['memory']:.0f} | {row['relative_cost']:.4f} | {row['objective_ratio']:.5f} |"
    )


def exponent(rows: list[Row], key: str) -> float:
    """Slope of log(key) over log(n) of our exact picks at k = n / 10, n >= 2,500."""
    own = [r for r in rows if r["method"] == "ours" and r["d"] == 10 and not r["batches"]]
    own = [r for r in own if float(r["n"]) == 10 * float(r["k"]) and float(r["n"]) >= 2500]
    x, y = ([math.log(max(float(r[name]), 1e-3)) for r in own] for name in ("n", key))
    return float(np.polyfit(x, y, 1)[0])


def plot(rows: list[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    first = [r for r in rows if r["case"] == CASES[0][0] and r["method"] != "random picks"]
    first.sort(key=lambda r: -float(r["seconds"]))
    colours = ["#d1495b" if str(r["method"]).startswith("ours") else "#9aa5b1" for r in first]
    seconds = [float(r["seconds"]) for r in first]
    bars = left.barh([str(r["method"]) for r in first], seconds, color=colours)
    labels = [
        f"{s:.2f} s, cost {float(r['relative_cost']):.3f}"
        for s, r in zip(seconds, first, strict=True)
    ]
    left.bar_label(bars, labels, padding=3, fontsize=8)
    left.set(xscale="log", xlabel="CPU seconds, one thread", title="n 5,000, k 500, d 10")
    left.set_xlim(min(seconds) / 2, max(seconds) * 12)
    for name, colour in (("ours", "#d1495b"), ("apricot, lazy", "#9aa5b1")):
        own = [r for r in rows if r["method"] == name and r["d"] == 10 and not r["batches"]]
        own = sorted((r for r in own if r["n"] == 10 * int(r["k"])), key=lambda r: float(r["n"]))
        sizes = [float(r["n"]) for r in own]
        right.plot(sizes, [float(r["seconds"]) for r in own], "o-", color=colour, label=name)
    right.set(xscale="log", yscale="log", xlabel="n (k = n / 10, d = 10)", ylabel="CPU seconds")
    right.set_xticks(
        [1250, 2500, 5000, 10000, 20000], ["1,250", "2,500", "5,000", "10,000", "20,000"]
    )
    right.minorticks_off()
    right.set_title(f"growth of ours: n^{exponent(rows, 'seconds'):.2f}")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--repeats", type=int, default=2, help="runs up to n = 5,000")
    parser.add_argument("--large", action="store_true", help="also n = 50,000 and 100,000")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*json.loads(arguments.child))))
        return
    machine = f"{cpu_name()}, {os.cpu_count()} cores, one thread used"
    load = os.getloadavg()[0]
    print(HEADER)
    arguments.output.mkdir(parents=True, exist_ok=True)
    kept = arguments.output / "selection.unfinished.json"
    rows = benchmark(CASES + (LARGE if arguments.large else []), arguments.repeats, kept)
    if torch.cuda.is_available():
        rows += cuda_rows()
    growth = {key: exponent(rows, key) for key in ("seconds", "memory")}
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
        "load": load,
        "python": platform.python_version(),
        "versions": versions(),
        "growth": growth,
        "rows": rows,
    }
    (arguments.output / "selection.json").write_text(json.dumps(record, indent=1) + "\n")
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = [
        "# Facility location (`python benchmarks/selection.py`)",
        "",
        f"{record['date']}, {machine}, load {load:.1f} before the start, Python "
        f"{record['python']}, {listed}. CPU seconds, so that other work on the machine counts "
        "little; ratios are what counts. Cost and objective are relative to our exact picks; the "
        "authors' path maximises another kernel, exp(-d / number of features).",
        "",
        HEADER,
        *map(as_line, rows),
        "",
        f"Growth of our exact picks at k = n / 10: CPU seconds n^{growth['seconds']:.2f}, memory "
        f"n^{growth['memory']:.2f}.",
        "",
        "![](selection.png)",
        "",
    ]
    (arguments.output / "selection.md").write_text("\n".join(text))
    plot(rows, arguments.output / "selection.png")
    kept.unlink()


if __name__ == "__main__":
    main()
