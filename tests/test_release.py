"""What a release holds: one version everywhere, type information, an import that costs little."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_robust

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """What ``import lightning.pytorch`` loads, and what the package loads after it."""
    program = """
import json, sys
import lightning.pytorch
first = set(sys.modules)
import lightning_robust
print(json.dumps([sorted(first), sorted(set(sys.modules) - first)]))
"""
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    return dict(zip(("lightning", "ours"), json.loads(output.splitlines()[-1]), strict=True))


def test_importing_the_package_loads_nothing_but_lightning_and_itself(imported):
    others = {name for name in imported["ours"] if name.split(".")[0] != "lightning_robust"}
    light = {name for name in others if name.split(".")[0] in sys.stdlib_module_names}
    assert others == light


@pytest.mark.parametrize("room", ["data", "reproduce", "sweeping", "cli"])
def test_importing_the_menu_leaves_rooms_closed_that_it_does_not_need(imported, room):
    assert "lightning_robust" in imported["ours"]
    assert f"lightning_robust.{room}" not in imported["ours"]


def test_the_version_is_the_same_everywhere():
    version = lightning_robust.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.search(r"^## (\S+)", changes, re.MULTILINE)
    assert latest is not None
    assert latest[1] == version
    assert f"Version {version}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_installed_version_is_that_of_the_code():
    assert importlib.metadata.version("lightning-robust") == lightning_robust.__version__


def test_types_are_shipped():
    assert (Path(lightning_robust.__file__).parent / "py.typed").is_file()
