"""One file a paper's artifact: data, settings, run, table and plot."""

from __future__ import annotations

ARTIFACTS: dict[str, str] = {
    "it-fig4a": "lightning_robust.reproduce.it_fig4a",
    "it-collapse": "lightning_robust.reproduce.it_collapse",
    "it-fig6": "lightning_robust.reproduce.it_fig6",
    "it-svm": "lightning_robust.reproduce.it_svm",
    "mat-fig1": "lightning_robust.reproduce.mat_fig1",
    "sagawa": "lightning_robust.reproduce.sagawa",
}
"""Name on the command line to the module whose ``run(seeds, output=folder)`` reproduces it."""
