"""README's Python blocks, run one after the other as a reader would paste them into one session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lightning_robust.data import ColouredDigitsDataModule
from lightning_robust.models import Classifier, SmallConvNet

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def project(tmp_path, monkeypatch) -> dict[str, object]:
    """What a reader has already: a module and a datamodule; one epoch must do here."""
    monkeypatch.chdir(tmp_path)
    patient = Trainer.__init__

    def hasty(self, *arguments, **options):
        patient(self, *arguments, **options)
        self.fit_loop.max_epochs = 2

    monkeypatch.setattr(Trainer, "__init__", hasty)
    return {
        "your_module": Classifier(SmallConvNet()),
        "your_datamodule": ColouredDigitsDataModule(batch_size=200),
    }


def test_python_blocks_run(project):
    assert len(BLOCKS) >= 3
    for number, block in enumerate(BLOCKS, start=1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), project)


def test_every_file_and_page_it_links_to_exists():
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert links
    for link in links:
        assert (Path(__file__).parents[1] / link).exists(), link
