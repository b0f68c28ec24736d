"""What artifacts have in common: refusals before training, numbers and a figure after it."""

from __future__ import annotations

import builtins
import json
from dataclasses import dataclass
from statistics import mean, stdev

import pytest

from lightning_robust.contracts import ContractError
from lightning_robust.reproduce import report


@dataclass
class Run:
    seed: int
    worst: float


def test_writes_numbers_and_picture_into_a_new_folder(tmp_path, capsys):
    pytest.importorskip("matplotlib")

    def draw(figure):
        figure.set_size_inches(2, 1)
        figure.subplots().plot([0, 1])

    report.write("name", [Run(0, 0.5), Run(1, 0.25)], tmp_path / "new", draw)
    assert json.loads((tmp_path / "new" / "name.json").read_text()) == [
        {"seed": 0, "worst": 0.5},
        {"seed": 1, "worst": 0.25},
    ]
    assert (tmp_path / "new" / "name.png").read_bytes()[:4] == b"\x89PNG"
    assert str(tmp_path / "new" / "name.png") in capsys.readouterr().out


def test_mean_and_std_against_the_standard_library():
    values = [0.1, 0.35, 0.2]
    expected = f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"
    assert report.in_percent(values) == expected
    assert report.in_percent([0.5]) == "50.0"


def test_no_seed_and_no_matplotlib_are_refused_before_training(tmp_path, monkeypatch):
    with pytest.raises(ContractError, match="seeds"):
        report.check_run((), None)
    theirs = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name == "matplotlib":
            raise ModuleNotFoundError(name)
        return theirs(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'demo'"):
        report.check_run((0,), tmp_path)
    report.check_run((0,), None)
