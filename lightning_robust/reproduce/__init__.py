"""One file a paper's artifact: data, settings, run, table and plot."""

from __future__ import annotations

ARTIFACTS: dict[str, str] = {
    "crest-cifar10": "lightning_robust.reproduce.crest_cifar10",
    "crest-mechanics": "lightning_robust.reproduce.crest_mechanics",
    "crest-redundant": "lightning_robust.reproduce.crest_redundant",
    "epic-gm": "lightning_robust.reproduce.epic_gm",
    "it-collapse": "lightning_robust.reproduce.it_collapse",
    "it-fig4a": "lightning_robust.reproduce.it_fig4a",
    "it-fig6": "lightning_robust.reproduce.it_fig6",
    "it-svm": "lightning_robust.reproduce.it_svm",
    "lr-digits": "lightning_robust.reproduce.lr_digits",
    "lr-moonstar": "lightning_robust.reproduce.lr_moonstar",
    "lr-parity": "lightning_robust.reproduce.lr_parity",
    "lr-proposition1": "lightning_robust.reproduce.lr_proposition1",
    "mat-fig1": "lightning_robust.reproduce.mat_fig1",
    "mat-fig2": "lightning_robust.reproduce.mat_fig2",
    "mat-fig3": "lightning_robust.reproduce.mat_fig3",
    "mat-fig7": "lightning_robust.reproduce.mat_fig7",
    "mat-figB": "lightning_robust.reproduce.mat_figb",
    "pde-fig3": "lightning_robust.reproduce.pde_fig3",
    "pde-table1": "lightning_robust.reproduce.pde_table1",
    "s2l-longtail": "lightning_robust.reproduce.s2l_longtail",
    "sagawa": "lightning_robust.reproduce.sagawa",
    "vl-digits": "lightning_robust.reproduce.vl_digits",
    "vl-patches": "lightning_robust.reproduce.vl_patches",
}
"""Name on the command line to the module whose ``run(seeds, output=folder)`` reproduces it."""
