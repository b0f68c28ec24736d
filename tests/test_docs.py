"""The pages of docs/: what they show runs, and they describe everything public."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

import lightning_robust
from lightning_robust import Method

DOCS = Path(__file__).parents[1] / "docs"
TEXTS = {
    path.relative_to(DOCS).with_suffix("").as_posix(): path.read_text(encoding="utf-8")
    for path in DOCS.rglob("*.md")
    if "_build" not in path.parts
}
DIRECTIVE = re.compile(r"^\.\. auto(?:class|function|module):: (\S+)\n((?:   .*\n)*)", re.MULTILINE)
ROOMS = ("", ".data", ".models", ".metrics", ".representation", ".models.attribution")
ROOMS += (".contracts", ".sampling", ".steering", ".observing", ".randomness")


def members(module: str) -> list[object]:
    """What autodoc shows of a module with ``:members:``."""
    room = import_module(module)
    own = [n for n, v in vars(room).items() if getattr(v, "__module__", "") == module]
    names = getattr(room, "__all__", [name for name in own if not name.startswith("_")])
    return [getattr(room, name) for name in names if callable(getattr(room, name))]


def submodules(package: str) -> list[str]:
    found = pkgutil.iter_modules(import_module(package).__path__)
    return [f"{package}.{module.name}" for module in found]


@pytest.fixture(scope="module")
def described() -> Counter[object]:
    """How often each public object is described, on all pages together."""
    found: list[object] = []
    for text in TEXTS.values():
        for package in re.findall(r"^%modules (\S+) :members:", text, re.MULTILINE):
            found += [member for module in submodules(package) for member in members(module)]
        for name, options in DIRECTIVE.findall(text):
            if ":no-index:" in options:
                continue
            module, _, attribute = name.rpartition(".")
            found += (
                members(name)
                if ":members:" in options and attribute.islower()
                else [getattr(import_module(module), attribute)]
            )
    return Counter(found)


@pytest.mark.parametrize("room", [f"lightning_robust{room}" for room in ROOMS])
def test_everything_public_is_described(room, described):
    missing = [one.__name__ for one in members(room) if one not in described]
    assert not missing, f"add them to a page of docs/api or docs/methods: {missing}"


def test_nothing_is_described_twice(described):
    twice = [getattr(one, "__name__", one) for one, times in described.items() if times > 1]
    assert not twice, f"one of the two wants :no-index: below it: {twice}"


@pytest.mark.parametrize("name", lightning_robust.__all__)
def test_every_callback_has_a_page_with_its_docstring(name):
    one = getattr(lightning_robust, name)
    if one.__module__.startswith("lightning_robust.callbacks.") and one is not Method:
        page = TEXTS[f"methods/{Path(inspect.getfile(one)).stem}"]
        assert f".. autoclass:: lightning_robust.{name}\n" in page


def test_every_page_is_in_a_table_of_contents():
    listed = set()
    for page, text in TEXTS.items():
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.split("\n"):
                entry = (Path(page).parent / line).as_posix()
                if line and not line.startswith(":"):
                    listed |= {p for p in TEXTS if Path(p).match(entry)}
    assert set(TEXTS) - listed == {"index"}


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", TEXTS[page]):
        if not target.startswith("notebooks/"):  # conf.py puts them there
            assert (DOCS / page).parent.joinpath(target).exists(), target


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("page", ["quickstart", "distributed", "writing_a_method"])
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    patient = Trainer.__init__

    def hasty(self, *arguments, max_epochs, **options):
        patient(self, *arguments, max_epochs=min(max_epochs, 5), **options)

    monkeypatch.setattr(Trainer, "__init__", hasty)
    blocks = re.findall(r"^```python\n(.*?)^```", TEXTS[page], re.MULTILINE | re.DOTALL)
    assert blocks
    session: dict[str, object] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page}.md, Python block {number}", "exec"), session)
