"""Figure 6 of importance tempering: which way the best margin moves."""

from __future__ import annotations

import pytest

from lightning_robust.contracts import ContractError
from lightning_robust.reproduce import it_fig6
from lightning_robust.reproduce.it_fig6 import MARGINS, PANELS, Run, best_margins, measure


def test_more_information_in_the_core_features_lowers_the_best_margin():
    settings = (PANELS["a"][0], PANELS["a"][-1])
    runs = [run for setting in settings for run in measure(*setting, margins=(1, 5, 10, 50))]
    assert all(run.train_error == 0 for run in runs)
    informed, uninformed = (best_margins(runs, setting) for setting in settings)
    assert informed[0] < uninformed[0]
    assert informed[1] < uninformed[1]


@pytest.mark.slow
@pytest.mark.parametrize("panel", PANELS)
def test_the_smallest_margin_close_to_the_best_moves_as_the_paper_says(panel):
    """Remark 5. The best one itself moves in panel (a) only, as the docstring says."""
    settings = (PANELS[panel][0], PANELS[panel][-1])
    runs = [run for setting in settings for seed in range(3) for run in measure(*setting, seed)]
    low, high = (best_margins(runs, setting)[1] for setting in settings)
    assert low < high


def test_prints_and_draws(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")

    def fake(core_variance, strength, seed=0):
        error = {margin: abs(margin - core_variance) / 250 + 0.1 * seed for margin in MARGINS}
        return [Run(core_variance, strength, m, seed, error[m], 0.0) for m in MARGINS]

    monkeypatch.setattr(it_fig6, "measure", fake)
    it_fig6.run((0, 1), output=tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    row = next(line for line in lines if line[:3] == ["a", "25", "1"])
    assert row[3:11] == ["14.6", "±", "7.1", "7.0", "±", "7.1", "20", "20"]
    assert (tmp_path / "it-fig6.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_arguments_are_refused():
    with pytest.raises(ContractError, match="core_variance"):
        measure(-1.0, 1.0)
    with pytest.raises(ContractError, match="seed"):
        measure(1.0, 1.0, seed=-1)
