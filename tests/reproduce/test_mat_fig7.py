"""MAT, Figure 7: it runs. The claim does not reproduce, and nothing of it is asserted."""

from __future__ import annotations

import pytest

from lightning_robust.contracts import ContractError
from lightning_robust.reproduce import mat_fig1, mat_fig7


def test_a_panel_trains_on_two_spurious_features_and_is_drawn():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    run = mat_fig1.train("MAT, noise", seed=0, steps=20, num_spurious=2)
    assert run.steps[-1] == 20
    assert 0 <= run.worst_group_acc <= run.acc <= 1
    assert mat_fig7.PAPER[run.panel] in mat_fig7.table([run])
    mat_fig7.plot([run], figure)
    assert "both" in figure.axes[0].get_legend().get_texts()[2].get_text()


def test_no_seed_is_refused():
    with pytest.raises(ContractError, match="seeds"):
        mat_fig7.run(())
