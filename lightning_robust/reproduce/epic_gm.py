"""EPIC against gradient matching, trained from scratch (Yang et al., ICML 2022; thesis ch. 4).

Table 4.2 and Figures 4.2 and 4.4 with handwritten digits in place of CIFAR-10. The setting is that
of :mod:`lightning_robust.reproduce.digit_poisons`: 30 clean-label poisons among 1,000 examples (the
paper has 1 %), l_inf budget .4 of the grey range, 16 targets of the half with the smaller margin,
one victim each. EPIC starts after 10 epochs and drops every 2; with .2 medoids the paper starts
after 20. Random, highest-loss and lowest-confidence dropping drop as many at each round as EPIC
did on the same poisons.

A poison is called *effective* if it belongs to the smallest set with which, the others being left
clean, the attack still succeeds on the undefended victim, of the sets of the 2, 4, 8, 15 and 30
poisons whose gradient is most like the target's; the paper tried "different combinations". Where
the attack fails undefended, there is none.

What was found (seeds 0 to 2, 16 targets each): the undefended victim is always fooled, with EPIC-.1
in 60 % of cases (69, 50 and 62 % by seed) and with EPIC-.2 in 54 %, at 1.0 and 1.2 points of
accuracy; random dropping of as many leaves 98 and 94 %. All thresholds are met on these means, not
by each seed: with seed 0, and with seed 3, EPIC-.1 gains 31 and 28 points where 35 are asked.

What did not reproduce: the 19 and 12 % of the benchmark's prototype. This attack is stronger than
the prototype's, which fooled 88 % of undefended victims and, after random dropping, two thirds: two
to four of its poisons are often enough, and others stand in for those that are dropped. At this
size dropping the highest losses or the lowest confidences does about as well as EPIC (50 and 60 %
in place of EPIC-.1, 67 and 67 % in place of EPIC-.2), unlike in the paper. Batches of 128, poisons
that start at their originals, and a warm-up of one epoch helped little where they were tried, on
four to six targets, most of them such as EPIC had failed on. The goal of 5 % of the training time
is missed by far, 23 and 27 %: with so small a network a pass over the data costs nearly as much as
training on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from time import process_time
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_robust import EPIC
from lightning_robust.contracts import check_choice, check_integer
from lightning_robust.data import PoisonedDataset
from lightning_robust.functional.poisons import gradient_matching as matching
from lightning_robust.reproduce.digit_poisons import (
    EPOCHS,
    Attack,
    Setup,
    accuracy,
    fit,
    gradient_matching,
    prepare,
)
from lightning_robust.reproduce.poison_eval import COLOURS, MATCHED, Defender
from lightning_robust.reproduce.report import aligned, check_run, in_percent, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER = {
    "None": "25 / 92.5",
    "EPIC-0.1": "2.7 / 90.9",
    "EPIC-0.2": "1.3 / 89.0",
}
"""Table 4.2, CIFAR-10 in 40 epochs: success / accuracy in percent."""

FRACTIONS = ("0.1", "0.2")
DEFENCES = ("None", *(f"{name}-{f}" for f in FRACTIONS for name in ("EPIC", *MATCHED)))
THRESHOLDS = {
    "attack works: success of none >=": 0.6,
    "EPIC helps: success of none - EPIC >=": 0.35,
    "more than dropping: success of random - EPIC >=": 0.2,
    "accuracy lost by EPIC <=": 0.05,
}
"""Of fractions; the last three for EPIC with .1 and with .2."""

NUM_TARGETS = 16
SIZES = (1, 2, 5, 10)
"""Upper ends of the classes of cluster sizes; the last class is open."""
CLUSTER_EPOCHS = (10, 20, 38)


@dataclass(frozen=True)
class Run:
    """One victim; shares and accuracies are fractions.

    Args:
        defence: One of ``DEFENCES``.
        seed: Of the setup.
        target: Number of the target.
        success: 1 if the target is taken for what it is to be, else 0.
        acc: On the test set.
        seconds: Processor time of the training.
        method_seconds: Of these, the time the defence took to decide.
        num_effective: How many poisons are effective.
        dropped: Share of all examples that have left, before each epoch.
        effective_dropped: Share of the effective poisons that have left; empty if there are none.
        clusters: For EPIC, by epoch as text: of ``"clean"``, ``"poison"`` and ``"effective"``
            examples, how many are in clusters of at most 1, 2, 5, 10 and more examples.
    """

    defence: str
    seed: int
    target: int
    success: float
    acc: float
    seconds: float
    method_seconds: float
    num_effective: int
    dropped: list[float]
    effective_dropped: list[float]
    clusters: dict[str, dict[str, list[int]]]


class _Clusters(Callback):
    """Counts examples by the size of the cluster they are in."""

    def __init__(self, method: EPIC, kinds: dict[str, Tensor]) -> None:
        self.method, self.kinds = method, kinds
        self.counts: dict[str, dict[str, list[int]]] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sizes = self.method.cluster_sizes
        if trainer.current_epoch in CLUSTER_EPOCHS and sizes is not None:
            place = torch.bucketize(sizes, torch.tensor(SIZES))
            self.counts[str(trainer.current_epoch)] = {
                kind: torch.bincount(
                    place[members & (sizes > 0)], minlength=len(SIZES) + 1
                ).tolist()
                for kind, members in self.kinds.items()
            }


def effective(attack: Attack, setup: Setup, seed: int) -> Tensor:
    """The poisons of the smallest set that still succeeds.

    Args:
        attack: That succeeds on the undefended victim.
        setup: What it was made for.
        seed: Of the victim.

    Returns:
        (m,) int64, training indices.
    """
    dataset = attack.dataset
    inputs = torch.stack([dataset[int(index)][0] for index in dataset.indices])
    label = torch.tensor([attack.label])
    objective = matching(setup.surrogates, label, attack.inputs, label)
    order = torch.tensor([float(objective(one[None]).detach()) for one in inputs]).argsort()
    for size in (2, 4, 8, 15):
        some = order[:size]
        fewer = PoisonedDataset(setup.clean, inputs[some], dataset.indices[some])
        victim = attack.victim(seed)
        fit(victim, fewer, seed, epochs=setup.epochs)
        if attack.success(victim) == 1:
            return dataset.indices[some]
    return dataset.indices


def measure(
    setup: Setup, target: int, defences: Sequence[str] = DEFENCES, *, find_effective: bool = True
) -> list[Run]:
    """Attack one target, and train a victim with each defence.

    Args:
        setup: See :func:`~lightning_robust.reproduce.digit_poisons.prepare`.
        target: Its number.
        defences: Some of ``DEFENCES``.
        find_effective: Look for the effective poisons, which takes up to four more victims.

    Raises:
        ContractError: If an argument is refused.
    """
    for defence in defences:
        check_choice("defence", defence, DEFENCES)
    check_integer("target", target)
    attack = gradient_matching(setup, target)
    seed = 1000 * setup.seed + target
    defender = Defender(attack, setup, seed)
    undefended, _, _ = defender.train("None")
    culprits = torch.zeros(len(setup.targets), dtype=torch.bool)
    if find_effective and attack.success(undefended) == 1:
        culprits[effective(attack, setup, seed)] = True
    poisoned = attack.dataset.poisoned
    kinds = {"clean": ~poisoned, "poison": poisoned, "effective": culprits}
    runs = []
    for defence in defences:
        method = defender.method(defence)
        spent = [0.0]
        callbacks: list[Any] = []
        if method is not None:
            method.decide = _timed(method.decide, spent)
            callbacks.append(method)
        if isinstance(method, EPIC):
            callbacks.append(_Clusters(method, kinds))
        victim, seconds = defender.train_with(defence, callbacks)
        left_at = torch.full_like(setup.targets, -1) if method is None else method.dropped_at
        gone = [(left_at >= 0) & (left_at <= epoch) for epoch in range(setup.epochs)]
        runs.append(
            Run(
                defence,
                setup.seed,
                target,
                attack.success(victim),
                accuracy(victim, setup),
                seconds,
                spent[0],
                int(culprits.sum()),
                [float(one.float().mean()) for one in gone],
                [float(one[culprits].float().mean()) for one in gone] if culprits.any() else [],
                callbacks[-1].counts if isinstance(method, EPIC) else {},
            )
        )
    return runs


def _timed(decide: Callable[[int], None], spent: list[float]) -> Callable[[int], None]:
    """Add the processor time of each call to ``spent``."""

    def timed(epoch: int) -> None:
        start = process_time()
        decide(epoch)
        spent[0] += process_time() - start

    return timed


def run(
    seeds: Sequence[int] = (0, 1, 2),
    *,
    num_targets: int = NUM_TARGETS,
    epochs: int = EPOCHS,
    output: Path | None = None,
) -> list[Run]:
    """Attack every target, defend in every way, print the paper next to what was measured.

    Args:
        seeds: Of split, surrogates, targets and victims.
        num_targets: Targets a seed.
        epochs: Of training.
        output: Folder for ``epic-gm.json`` and ``epic-gm.png``, made if need be; ``None`` writes
            nothing.

    Raises:
        ContractError: If there is no seed.
        ModuleNotFoundError: If ``output`` is given and matplotlib is missing.
    """
    check_run(seeds, output)
    runs: list[Run] = []
    for seed in seeds:
        setup = prepare(seed, num_targets=num_targets, epochs=epochs)
        for target in range(num_targets):
            found = measure(setup, target)
            runs += found
            fooled = ", ".join(one.defence for one in found if one.success) or "nobody"
            print(
                f"seed {seed}  target {target:>2}   effective poisons "
                f"{found[0].num_effective:>2}   fooled: {fooled}",
                flush=True,
            )
    print(f"\n{table(runs)}\n\n{verdict(runs)}")
    if output is not None:
        write("epic-gm", runs, output, partial(plot, runs))
    return runs


def of(runs: Sequence[Run], defence: str, quantity: str) -> float:
    """Mean of a quantity over all runs of a defence; 0 without a run."""
    values = [float(getattr(one, quantity)) for one in runs if one.defence == defence]
    return mean(values) if values else 0.0


def table(runs: Sequence[Run]) -> str:
    """One line a defence: means over targets and seeds; time of the method in % of training.

    Example:
        >>> one = Run("EPIC-0.1", 0, 0, 1.0, 0.95, 2.0, 0.1, 4, [0.0, 0.1], [0.0, 0.5], {})
        >>> print(table([one]))
        defence   success %  accuracy %  dropped %  effective dropped %  method's time %  paper
        EPIC-0.1  100        95.0        10         50                   5.0              2.7 / 90.9
    """
    rows = [
        [
            "defence",
            "success %",
            "accuracy %",
            "dropped %",
            "effective dropped %",
            "method's time %",
            "paper",
        ]
    ]
    for defence in dict.fromkeys(one.defence for one in runs):
        those = [one for one in runs if one.defence == defence]
        ends = [one.effective_dropped[-1] for one in those if one.effective_dropped]
        time = sum(one.method_seconds for one in those) / sum(one.seconds for one in those)
        rows.append(
            [
                defence,
                f"{100 * of(runs, defence, 'success'):.0f}",
                in_percent([one.acc for one in those]),
                f"{100 * mean(one.dropped[-1] for one in those):.0f}",
                f"{100 * mean(ends):.0f}" if ends else "-",
                f"{100 * time:.1f}",
                PAPER.get(defence, ""),
            ]
        )
    return aligned(rows)


def checks(runs: Sequence[Run]) -> list[tuple[str, float, float, bool]]:
    """Each threshold of the benchmark: name, value, what was measured, whether it is met."""
    success = partial(of, runs, quantity="success")
    attack, helps, more, costs = THRESHOLDS
    found = [(attack, THRESHOLDS[attack], success("None"), success("None") >= THRESHOLDS[attack])]
    for fraction in FRACTIONS:
        epic, random = f"EPIC-{fraction}", f"Random-{fraction}"
        gain, lead = success("None") - success(epic), success(random) - success(epic)
        lost = of(runs, "None", "acc") - of(runs, epic, "acc")
        found += [
            (f"{epic}: {helps}", THRESHOLDS[helps], gain, gain >= THRESHOLDS[helps]),
            (f"{epic}: {more}", THRESHOLDS[more], lead, lead >= THRESHOLDS[more]),
            (f"{epic}: {costs}", THRESHOLDS[costs], lost, lost <= THRESHOLDS[costs]),
        ]
    return found


def verdict(runs: Sequence[Run]) -> str:
    """The thresholds, one line each."""
    return aligned(
        [["threshold", "", "measured", ""]]
        + [
            [name, f"{threshold:g}", f"{value:.3f}", "met" if met else "NOT MET"]
            for name, threshold, value, met in checks(runs)
        ]
    )


def plot(runs: Sequence[Run], figure: Figure) -> None:
    """Success; effective poisons dropped against all dropped; clusters by size at three epochs."""
    figure.set_size_inches(13, 7)
    parts: Any = figure.subfigures(2, 1)
    upper, lower = parts
    left, right = upper.subplots(1, 2, width_ratios=(1.15, 1))
    defences = list(dict.fromkeys(one.defence for one in runs))
    heights = [100 * of(runs, defence, "success") for defence in defences]
    colours = [COLOURS[defence.partition("-")[0]] for defence in defences]
    bars = left.bar(range(len(defences)), heights, color=colours, width=0.7)
    left.bar_label(bars, [f"{height:.0f}" for height in heights], fontsize=9)
    short = {"HighestLoss": "highest\nloss", "LowestConfidence": "lowest\nconfid."}
    labels = [
        "\n".join([short.get(name, name), fraction])
        for name, _, fraction in (defence.partition("-") for defence in defences)
    ]
    left.set_xticks(range(len(defences)), labels, fontsize=8)
    left.set_ylabel("attack success, %")
    left.set_ylim(0, 108)
    left.set_title("Gradient matching, from scratch", fontsize=11)
    for defence in defences[1:]:
        name, _, fraction = defence.partition("-")
        those = [one for one in runs if one.defence == defence and one.effective_dropped]
        if those:
            curves = [
                [100 * mean(values) for values in zip(*lists, strict=True)]
                for lists in ([o.dropped for o in those], [o.effective_dropped for o in those])
            ]
            right.plot(
                *curves,
                "-" if fraction == "0.1" else "--",
                color=COLOURS[name],
                lw=2,
                label=defence.replace("-", " "),
            )
    right.plot([0, 100], [0, 100], color="#d1d5db", lw=1, zorder=0)
    right.set(xlabel="all examples dropped, %", ylabel="effective poisons dropped, %")
    widest = max(100 * one.dropped[-1] for one in runs)
    right.set(xlim=(0, 1.05 * max(widest, 1)), ylim=(0, 100))
    right.legend(frameon=False, fontsize=8, ncols=2)
    right.set_title("What a defence drops (Fig. 4.2)", fontsize=11)
    kinds = {"clean": "#9ca3af", "poison": "#a78bfa", "effective": "#dc2626"}
    names = ["1", "2", "3-5", "6-10", "> 10"]
    panels = lower.subplots(1, len(CLUSTER_EPOCHS), sharey=True)
    for panel, epoch in zip(panels, CLUSTER_EPOCHS, strict=True):
        found = [
            one.clusters[str(epoch)]
            for one in runs
            if one.defence == "EPIC-0.1" and str(epoch) in one.clusters
        ]
        for offset, (kind, colour) in enumerate(kinds.items()):
            totals = torch.tensor([one[kind] for one in found]).sum(0).float()
            if totals.numel() == len(names):
                shares = 100 * totals / totals.sum().clamp(min=1)
                places = torch.arange(len(names)) + 0.27 * (offset - 1)
                label = {"clean": "clean", "poison": "all poisons"}.get(kind, "effective poisons")
                panel.bar(places.tolist(), shares.tolist(), 0.25, color=colour, label=label)
        panel.set_xticks(range(len(names)), names)
        panel.set_xlabel("size of gradient cluster")
        panel.set_title(f"before epoch {epoch} (Fig. 4.4, EPIC 0.1)", fontsize=11)
    panels[0].set_ylabel("share of the kind, %")
    panels[0].legend(frameon=False, fontsize=9)
    for axis in (left, right, *panels):
        axis.spines[["top", "right"]].set_visible(False)
