"""One file a paper's artifact: data, settings, run, table and plot."""

from __future__ import annotations

ARTIFACTS: dict[str, str] = {
    "mat-fig1": "lightning_robust.reproduce.mat_fig1",
    "mat-fig3": "lightning_robust.reproduce.mat_fig3",
    "mat-fig7": "lightning_robust.reproduce.mat_fig7",
    "mat-figB": "lightning_robust.reproduce.mat_figb",
    "pde-fig3": "lightning_robust.reproduce.pde_fig3",
    "pde-table1": "lightning_robust.reproduce.pde_table1",
}
"""Name on the command line to the module whose ``run(seeds, output=folder)`` reproduces it."""
