"""Who may import whom: the layers of the package, read off its import statements."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lightning_robust"
LAYERS = (
    ("functional", "contracts", "randomness"),
    ("sampling", "steering", "metrics", "representation"),
    ("observing", "data", "models", "callbacks"),
    ("reproduce", "auditing", "sweeping", "cli", "__init__"),
)
WITHOUT_LIGHTNING = ("functional", "contracts", "sampling", "randomness")
FILES = sorted(path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py"))


def level(room: str) -> int:
    """The layer of a room; a room that has none fails here and must be added above."""
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


def imports(file: Path) -> list[str]:
    """Every module imported anywhere in a file, with dots."""
    tree = ast.parse((ROOT / file).with_suffix(".py").read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write the import from the package's root"
            found += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down_the_layers(file):
    room, outermost = file.parts[0], len(LAYERS) - 1
    for module in imports(file):
        package, _, inside = module.partition(".")
        assert package != "pytorch_lightning", (
            f"{file}: import lightning.pytorch, never mix the two"
        )
        if package.startswith("lightning") and package != "lightning_robust":
            assert room not in WITHOUT_LIGHTNING, f"{file} imports {module}"
        if package != "lightning_robust":
            continue
        # What the package itself offers (`from lightning_robust import SPARE`) is the outer layer.
        target = inside.split(".")[0]
        known = any(target in rooms for rooms in LAYERS)
        assert level(room) >= (level(target) if known else outermost), f"{file} imports {module}"
        if room == "callbacks":
            assert target != "data", f"{file}: methods meet data in contracts only"


@pytest.mark.parametrize("file", [f for f in FILES if f.parts[0] == "callbacks"], ids=str)
def test_a_method_never_imports_another(file):
    for module in imports(file):
        if module.startswith("lightning_robust.callbacks.") and file.name != "__init__":
            assert module.split(".")[2].startswith("_"), f"{file} imports {module}"
