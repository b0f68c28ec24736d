"""Recipes over seeds and random draws of their settings, chosen by the worst group."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from lightning_robust.callbacks.group_metrics import GroupMetrics
from lightning_robust.contracts import (
    ContractError,
    Groups,
    check_at_least,
    check_bool,
    check_choice,
    check_integer,
    groups_of,
    targets_of,
)
from lightning_robust.models.xrm import CrossRisk, silent
from lightning_robust.randomness import generator
from lightning_robust.reproduce.report import aligned, in_percent, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Select: TypeAlias = Literal["given", "inferred", "class"]
Space: TypeAlias = Mapping[str, Mapping[str, Any]]

MONITOR = "val/worst_group_acc"

_DECAY = {"low": 1e-6, "high": 1e-3, "log": True}
_ANY: Space = {
    "MAT.temperature": {"choices": [0.001, 0.01, 0.1]},
    "GroupDRO.step_size": {"low": 1e-3, "high": 1e-1, "log": True},
}
SPACES: dict[str, Space] = {
    "mat": {
        "model.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "model.weight_decay": _DECAY,
        "data.batch_size": {"low": 32, "high": 128, "log": True, "integer": True},
        **_ANY,
    },
    "mat-text": {
        "model.learning_rate": {"low": 1e-6, "high": 1e-4, "log": True},
        "model.weight_decay": _DECAY,
        "model.network.dropout": {"choices": [0.0, 0.1, 0.5]},
        "data.batch_size": {"low": 16, "high": 64, "log": True, "integer": True},
        **_ANY,
    },
}
"""The ranges of Table 3 of MAT's paper, for ResNets and for BERT."""


@dataclass(frozen=True)
class Run:
    """One training of a recipe.

    Args:
        draw: Which draw of the settings, from 0; -1 is the recipe as it is.
        seed: Of ``seed_everything``.
        values: What was drawn, by name.
        val: Worst-group accuracy on the validation set, of the checkpoint that was kept: the
            groups are those that are selected by.
        worst_group_acc: On the test set, with its own groups; a fraction.
        acc: On the test set.
        adjusted_acc: On the test set, weighted by training group frequencies; ``None`` if these are
            not known.
        group_acc: On the test set, by group name; ``None`` for a group without examples.
        seconds: Wall-clock time.
    """

    draw: int
    seed: int
    values: dict[str, Any]
    val: float
    worst_group_acc: float
    acc: float
    adjusted_acc: float | None
    group_acc: dict[str, float | None] = field(repr=False)
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """What became of a recipe.

    Args:
        recipe: Its path.
        chosen: The draw whose run has the best worst group of the validation set; the first of
            equals; -1 is the recipe as it is.
        draws: Runs of the random search.
        runs: Runs of the chosen draw, one a seed.
    """

    recipe: str
    chosen: int
    draws: list[Run]
    runs: list[Run]


# --- settings -------------------------------------------------------------------------------------


def load_space(name: str | Path | None) -> Space:
    """The ranges to draw from: a name of ``SPACES``, a YAML file, or none.

    Each entry is named like ``model.learning_rate``, ``data.batch_size``, or
    ``<callback>.<argument>``, and has ``choices``, or ``low`` and ``high``, with ``log: true``
    for a uniform logarithm, and ``integer: true``.

    Raises:
        ContractError: There is no such file, or an entry is something else.
    """
    if name is None:
        return {}
    if str(name) in SPACES:
        return SPACES[str(name)]
    path = Path(name).expanduser()
    if not path.is_file():
        raise ContractError(
            f"space={str(name)!r} must be one of {', '.join(SPACES)}, or an existing YAML file"
        )
    import yaml

    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not found:
        raise ContractError(f"space={str(name)!r} must map names to ranges; see docs/recipes.md")
    for entry, given in found.items():
        _check_range(entry, given)
    return found


def _check_range(entry: str, given: Any) -> None:
    if not isinstance(given, dict):
        raise ContractError(f"space: {entry} must be a mapping, got {given!r}; give low and high")
    if "choices" in given:
        if set(given) != {"choices"} or not isinstance(given["choices"], list):
            raise ContractError(f"space: {entry} must have a list of choices only, got {given}")
        return
    if not {"low", "high"} <= set(given) <= {"low", "high", "log", "integer"}:
        raise ContractError(
            f"space: {entry} must have choices, or low and high, and maybe log and integer, got "
            f"{given}"
        )
    for word in ("log", "integer"):
        check_bool(f"space: {entry}: {word}", given.get(word, False))
    check_at_least(f"space: {entry}: high", given["high"], float(given["low"]))
    if given.get("log", False) and not float(given["low"]) > 0:
        raise ContractError(f"space: {entry}: low must be > 0 with log, got {given['low']}")


def drawn(space: Space, draw: int) -> dict[str, Any]:
    """The values of one draw; each depends on its name and the draw alone.

    Example:
        >>> drawn({"model.momentum": {"choices": [0.9]}}, 3)
        {'model.momentum': 0.9}
    """
    values: dict[str, Any] = {}
    for name, given in space.items():
        share = float(
            torch.rand(1, generator=generator(draw, f"sweep: {name}"), dtype=torch.double)
        )
        if "choices" in given:
            values[name] = given["choices"][int(share * len(given["choices"]))]
            continue
        low, high = float(given["low"]), float(given["high"])
        value = low * (high / low) ** share if given.get("log") else low + (high - low) * share
        values[name] = round(value) if given.get("integer") else float(f"{value:.6g}")
    return values


def with_values(config: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe with some settings replaced; a callback it does not have is left out.

    Args:
        config: As it is read of a YAML file.
        values: By name: see :func:`load_space`.

    Raises:
        ContractError: A name leads nowhere.

    Example:
        >>> config = {"model": {"class_path": "Classifier", "init_args": {"momentum": 0.9}}}
        >>> with_values(config, {"model.momentum": 0.5, "MAT.temperature": 1})["model"]["init_args"]
        {'momentum': 0.5}
    """
    config = copy.deepcopy(config)
    callbacks = _callbacks(config)
    for name, value in values.items():
        first, *path = name.split(".")
        if first in ("model", "data", "trainer"):
            node = config.setdefault(first, {})
        elif first[:1].isupper() and path:
            if first not in callbacks:
                continue
            node = callbacks[first]
        else:
            raise ContractError(
                f"{name!r} is no setting; name it model.…, data.…, trainer.…, or by a callback's "
                "class, as in MAT.temperature"
            )
        for word in path[:-1]:
            node = _arguments(node, name).get(word)
        _arguments(node, name)[path[-1]] = value
    return config


def _callbacks(config: Mapping[str, Any]) -> dict[str, Any]:
    """By class name, as they stand in a recipe."""
    found = config.get("trainer", {}).get("callbacks") or []
    return {one["class_path"].rpartition(".")[2]: one for one in found}


def _own(space: Space, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The ranges without those of callbacks that a recipe does not have."""
    callbacks = _callbacks(config)
    return {
        name: given
        for name, given in space.items()
        if not name[:1].isupper() or name.partition(".")[0] in callbacks
    }


def _arguments(node: Any, name: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise ContractError(f"{name!r} is no setting of this recipe; see its YAML file")
    found: dict[str, Any] = node.setdefault("init_args", {}) if "class_path" in node else node
    return found


# --- one run --------------------------------------------------------------------------------------


def configured(config: Mapping[str, Any], words: Sequence[str] = (), seed: int = 0) -> Any:
    """Trainer, model and data of a recipe: a ``LightningCLI`` that has not run.

    Args:
        config: As it is read of a YAML file.
        words: Further options, as on the command line.
        seed: Of ``seed_everything``.

    Raises:
        ContractError: A constructor refuses its arguments.
    """
    # Lightning calls jsonargparse in deprecated ways, which its users can do nothing about.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    import yaml
    from lightning.pytorch.cli import LightningCLI

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        try:
            return LightningCLI(
                args=[f"--config={path}", *words, f"--seed_everything={seed}"],
                run=False,
                save_config_callback=None,
            )
        except ValueError as error:  # jsonargparse wraps what a constructor says
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, ContractError):
                cause = cause.__cause__ or cause.__context__
            raise ContractError(str(cause or error)) from error


def _train(
    config: dict[str, Any],
    words: Sequence[str],
    seed: int,
    select: Select,
    inferred: str | Path | None,
    folder: Path,
) -> dict[str, Any]:
    """Fit, and test the checkpoint that was kept; the figures of a :class:`Run`."""
    quiet = [f"--trainer.{name}=false" for name in ("logger", "enable_progress_bar")]
    quiet += ["--trainer.enable_model_summary=false", f"--trainer.default_root_dir={folder}"]
    start = time.perf_counter()
    with silent():
        cli = configured(config, [*quiet, *words], seed)
        trainer, module, data = cli.trainer, cli.model, cli.datamodule
        if data is None:
            raise ContractError("the recipe has no data; name a LightningDataModule")
        if select != "given":
            _select_by(trainer, data, select, inferred)
        trainer.fit(module, data)
        if MONITOR not in trainer.callback_metrics:
            raise ContractError(
                f"the recipe logs no {MONITOR}; add lightning_robust.GroupMetrics to its callbacks"
            )
        keeper = trainer.checkpoint_callback
        val = trainer.callback_metrics[MONITOR]
        if keeper is not None and keeper.monitor == MONITOR and keeper.best_model_score is not None:
            val = keeper.best_model_score
        kept = None if keeper is None else keeper.best_model_path or None
        trainer.test(module, data, ckpt_path=kept, verbose=False)
    found = {key: float(value) for key, value in trainer.callback_metrics.items()}
    prefix = "test/group_acc/"
    return {
        "val": float(val),
        "worst_group_acc": found["test/worst_group_acc"],
        "acc": found["test/acc"],
        "adjusted_acc": found.get("test/adjusted_acc"),
        "group_acc": {
            key.removeprefix(prefix): value if value == value else None
            for key, value in found.items()
            if key.startswith(prefix)
        },
        "seconds": time.perf_counter() - start,
    }


def _select_by(trainer: Any, data: Any, select: Select, inferred: str | Path | None) -> None:
    """Measure the validation set by other groups than its own, and the test set by its own."""
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    val, test = data.val_dataloader().dataset, data.test_dataloader().dataset
    if select == "class":
        groups = Groups.from_ids(targets_of(val))
    else:
        found = CrossRisk.load(str(inferred)).val_groups
        if found is None or len(found) != len(val):
            raise ContractError(
                f"{str(inferred)!r} must hold the inferred groups of {len(val)} validation "
                f"examples, got {'none' if found is None else len(found)}; give XRM a val_dataset"
            )
        groups = found
    measured = GroupMetrics(groups={"val": groups, "test": groups_of(test)})
    trainer.callbacks = [
        measured if isinstance(one, GroupMetrics) else one for one in trainer.callbacks
    ]


# --- the sweep ------------------------------------------------------------------------------------


def sweep(
    recipes: Sequence[str | Path],
    output: str | Path,
    *,
    space: str | Path | None = None,
    draws: int = 16,
    seeds: Sequence[int] = range(3),
    select: Select = "given",
    inferred: str | Path | None = None,
    words: Sequence[str] = (),
) -> list[Sweep]:
    """Search, choose, repeat: what MAT's paper does, for one or more recipes.

    Each recipe trains with ``draws`` draws of its settings and the first seed; the draw with the
    best worst group of the validation set trains with the other seeds; the checkpoint a recipe
    keeps is measured on the test set. Every run's figures are a file below ``output``: a sweep that
    was killed goes on where it was when it is started again. Nothing is chosen by the test set.

    Args:
        recipes: YAML files of LightningCLI.
        output: Folder of the runs, of ``sweep.json``, and of ``sweep.png``.
        space: What is drawn: see :func:`load_space`; ``None`` runs the recipes as they are.
        draws: How many draws.
        seeds: Of ``seed_everything``.
        select: The groups of the validation set that a draw and a checkpoint are chosen by:
            ``"given"``, its own; ``"inferred"``, those XRM found; ``"class"``, its classes.
        inferred: File of :meth:`CrossRisk.save <lightning_robust.models.CrossRisk.save>`, for
            ``"inferred"``.
        words: Further options for all recipes, as on the command line of ``fit``.

    Raises:
        ContractError: An argument is refused; the folder holds another sweep; or all draws of a
            recipe are refused.
        ModuleNotFoundError: matplotlib is missing.
    """
    check_integer("draws", draws, minimum=1)
    check_choice("select", select, ("given", "inferred", "class"))
    if (select == "inferred") != (inferred is not None):
        raise ContractError(
            f"select={select!r} and inferred={inferred!r} do not go together; inferred is the file "
            'of groups for "inferred", give both or neither'
        )
    if not recipes or not seeds:
        raise ContractError("there must be at least one recipe and one seed")
    require_matplotlib()
    ranges, folder = load_space(space), Path(output).expanduser()
    configs = {str(recipe): _read(recipe) for recipe in recipes}
    for name in [] if str(space) in SPACES else ranges:
        if not any(name in _own(ranges, config) for config in configs.values()):
            print(f"{name} is passed over: no recipe has this callback", flush=True)
    labels = _labels(list(configs))
    found = []
    for recipe, config in configs.items():
        place = folder / labels[recipe]
        own = _own(ranges, config)
        same = (config, own, select, list(words), _digest(inferred))
        _claim(place, hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest())
        setting = _Setting(labels[recipe], config, own, place, select, inferred, list(words))
        found.append(_swept(setting, recipe, draws, list(seeds)))
    print(f"\n{table(found)}")
    _write(folder, found)
    return found


@dataclass(frozen=True)
class _Setting:
    """A recipe and all that its runs have in common."""

    label: str
    config: dict[str, Any]
    space: Space
    folder: Path
    select: Select
    inferred: str | Path | None
    words: list[str]
    told: set[str] = field(default_factory=set)

    def run(self, draw: int, seed: int) -> Run:
        """What the file of this run holds; if there is none, train and write it."""
        name = f"{'as_it_is' if draw < 0 else f'draw_{draw}'}-seed_{seed}"
        path = self.folder / f"{name}.json"
        if path.is_file():
            before = Run(**json.loads(path.read_text(encoding="utf-8")))
            self._tell(name, before, "done before")
            return before
        values = {} if draw < 0 else drawn(self.space, draw)
        checkpoints = self.folder / f"{name}.checkpoints"
        shutil.rmtree(checkpoints, ignore_errors=True)  # of a run that was killed
        config = with_values(self.config, values)
        try:
            found = _train(config, self.words, seed, self.select, self.inferred, checkpoints)
        finally:
            shutil.rmtree(checkpoints, ignore_errors=True)
            gc.collect()
        done = Run(draw=draw, seed=seed, values=values, **found)
        _replace(path, asdict(done))
        self._tell(name, done, f"{done.seconds:.0f} s")
        return done

    def _tell(self, name: str, run: Run, when: str) -> None:
        """One line for each run, with what was drawn."""
        if name in self.told:
            return
        self.told.add(name)
        figures = (run.val, run.worst_group_acc, run.acc)
        val, worst, average = (f"{100 * figure:.1f}" for figure in figures)
        values = f" ({_shown(run.values)})" if run.values else ""
        print(
            f"{self.label}, {name}{values}: validation {val}, test worst group {worst}, average "
            f"{average} ({when})",
            flush=True,
        )


def _swept(setting: _Setting, recipe: str, draws: int, seeds: list[int]) -> Sweep:
    searched: list[Run] = []
    chosen = -1
    if setting.space:
        refused: ContractError | None = None
        for draw in range(draws):
            try:
                searched.append(setting.run(draw, seeds[0]))
            except ContractError as error:  # such as a loss that is not finite
                print(f"{setting.label}, draw {draw} is refused: {error}", flush=True)
                refused = error
        if not searched:
            assert refused is not None
            raise refused
        chosen = max(searched, key=lambda one: one.val).draw
    return Sweep(recipe, chosen, searched, [setting.run(chosen, seed) for seed in seeds])


def table(sweeps: Sequence[Sweep]) -> str:
    """Mean ± standard deviation over seeds, in percent, as the papers print them."""
    rows = [["recipe", "worst group", "average", "adjusted average", "validation", "chosen"]]
    labels = _labels([one.recipe for one in sweeps])
    for one in sweeps:
        adjusted = [run.adjusted_acc for run in one.runs if run.adjusted_acc is not None]
        values = one.runs[0].values
        rows.append(
            [
                labels[one.recipe],
                in_percent([run.worst_group_acc for run in one.runs]),
                in_percent([run.acc for run in one.runs]),
                in_percent(adjusted) if len(adjusted) == len(one.runs) else "",
                in_percent([run.val for run in one.runs]),
                _shown(values) or "as it is",
            ]
        )
    return aligned(rows)


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def plot(sweeps: Sequence[Sweep], figure: Figure) -> None:
    """Worst group and average of each recipe on the test set; beside it, the search."""
    searched = any(one.draws for one in sweeps)
    figure.set_size_inches(10 if searched else 6, 1.2 + 0.55 * len(sweeps))
    axes = figure.subplots(1, 1 + searched, squeeze=False, sharey=True)[0]
    labels = list(_labels([one.recipe for one in sweeps]).values())
    for place, one in enumerate(sweeps):
        for values, colour, marker in (
            ([run.worst_group_acc for run in one.runs], "#c2410c", "o"),
            ([run.acc for run in one.runs], "#64748b", "s"),
        ):
            points = 100 * torch.tensor(values, dtype=torch.double)
            spread = float(points.std()) if len(points) > 1 else 0.0
            axes[0].errorbar(
                float(points.mean()), place, xerr=spread, fmt=marker, color=colour, capsize=3
            )
        if one.draws:
            scores = [100 * run.val for run in one.draws]
            axes[1].plot(scores, [place] * len(scores), "|", color="#64748b", markersize=14)
            axes[1].plot([max(scores)], [place], "o", color="#c2410c", markersize=5)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    axes[0].set_xlabel("test accuracy (%): worst group (●), average (■)")
    if searched:
        axes[1].set_xlabel("worst validation group (%) of each draw; chosen (●)")
    for axis in axes:
        axis.grid(axis="x", color="#e5e7eb")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)


# --- files ----------------------------------------------------------------------------------------


def _read(recipe: str | Path) -> dict[str, Any]:
    import yaml

    path = Path(recipe).expanduser()
    if not path.is_file():
        raise ContractError(f"{str(recipe)!r} must be an existing YAML file; see recipes/")
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or "model" not in found:
        raise ContractError(f"{str(recipe)!r} must have a model; see recipes/")
    return found


def _labels(recipes: Sequence[str]) -> dict[str, str]:
    """Names to tell recipes by: the file's, or with its folder where these are the same."""
    stems = [Path(recipe).stem for recipe in recipes]
    if len({*stems}) == len(stems):
        return dict(zip(recipes, stems, strict=True))
    longer = ["-".join(Path(recipe).with_suffix("").parts[-2:]) for recipe in recipes]
    if len({*longer}) < len(longer):
        raise ContractError(f"recipes must have different names, got {', '.join(recipes)}")
    return dict(zip(recipes, longer, strict=True))


def _digest(path: str | Path | None) -> str | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise ContractError(f"inferred={str(path)!r} must be an existing file")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _claim(folder: Path, fingerprint: str) -> None:
    """Refuse a folder that holds the runs of other settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if not path.is_file():
        _replace(path, {"fingerprint": fingerprint})
    elif json.loads(path.read_text(encoding="utf-8"))["fingerprint"] != fingerprint:
        raise ContractError(
            f"{folder} holds runs of another recipe, other ranges or other options; give another "
            "output folder, or remove it"
        )


def _replace(path: Path, content: dict[str, Any]) -> None:
    """Write a file all at once: whoever is killed leaves none, or the whole."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _write(folder: Path, sweeps: Sequence[Sweep]) -> None:
    from matplotlib.figure import Figure

    numbers, picture = folder / "sweep.json", folder / "sweep.png"
    numbers.write_text(json.dumps([asdict(one) for one in sweeps], indent=2) + "\n")
    figure = Figure(layout="constrained", dpi=150)
    plot(sweeps, figure)
    figure.savefig(picture)
    print(f"\nWrote {numbers} and {picture}")
