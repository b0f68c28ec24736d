"""One file a paper's artifact: data, settings, run, table and plot."""

from __future__ import annotations

ARTIFACTS: dict[str, str] = {
    "epic-gm": "lightning_robust.reproduce.epic_gm",
    "it-fig4a": "lightning_robust.reproduce.it_fig4a",
    "it-svm": "lightning_robust.reproduce.it_svm",
    "mat-fig1": "lightning_robust.reproduce.mat_fig1",
    "sagawa": "lightning_robust.reproduce.sagawa",
}
"""Name on the command line to the module whose ``run(seeds, output=folder)`` reproduces it."""
