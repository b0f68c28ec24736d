"""A new method is two new files and three one-line edits; forgetting one fails here."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import lightning_robust
from lightning_robust import ContractError
from lightning_robust.callbacks._base import Method

from .cases import CASES, METHODS, case_of

ROOT = Path(__file__).parents[2]


def parameters_of(method: type[Method]) -> list[inspect.Parameter]:
    return list(inspect.signature(method).parameters.values())


def defined_methods() -> set[type[Method]]:
    """Every final subclass of Method that a file of callbacks defines."""
    for file in (ROOT / "lightning_robust" / "callbacks").glob("*.py"):
        __import__(f"lightning_robust.callbacks.{file.stem}")
    found, waiting = set(), [Method]
    while waiting:
        children = waiting.pop().__subclasses__()
        waiting += children
        found |= {c for c in children if c.__module__.startswith("lightning_robust.callbacks.")}
    return {c for c in found if not c.__name__.startswith("_")}


def test_every_method_is_on_the_menu_and_has_a_case():
    assert defined_methods() == set(METHODS), "export it in lightning_robust/__init__.py"
    for method in METHODS:
        case_of(method)
    assert set(CASES) == set(METHODS)


def test_a_method_without_a_case_is_named():
    with pytest.raises(LookupError, match=r"Forgotten has no entry in tests/contract/cases\.py"):
        case_of(type("Forgotten", (Method,), {"__module__": "elsewhere"}))


def test_has_a_row_in_the_readme(method):
    rows = re.findall(r"^\|.*\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert any(f"`{method.__name__}`" in row for row in rows), f"add {method.__name__} to a table"


def test_has_a_page_in_the_docs(method):
    page = ROOT / "docs" / "methods" / f"{Path(inspect.getfile(method)).stem}.md"
    assert page.is_file(), f"write {page.relative_to(ROOT)}"
    assert method.__name__ in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("section", ["Args", "Raises", "References", "Example", "Logged keys"])
def test_docstring_has_its_sections(method, section):
    text = inspect.cleandoc(method.__doc__ or "")
    assert re.search(rf"^{section}\b.*:", text, re.MULTILINE), f"no {section}"


@pytest.mark.parametrize("word", ["What changes", "Needs", "Costs"])
def test_docstring_says_what_a_user_asks(method, word):
    assert f"**{word}**" in (method.__doc__ or "")


def test_every_argument_is_documented(method):
    text = inspect.cleandoc(method.__doc__ or "")
    for parameter in parameters_of(method):
        assert re.search(rf"^    {parameter.name}: \S", text, re.MULTILINE), parameter.name


def test_arguments_are_keyword_only_after_the_first_and_have_defaults(method):
    parameters = parameters_of(method)
    assert all(p.default is not inspect.Parameter.empty for p in parameters)
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[1:])


def test_arguments_are_stored_unchanged(active):
    method = active()
    again = type(method)(**{p.name: getattr(method, p.name) for p in parameters_of(type(method))})
    for parameter in parameters_of(type(method)):
        given = getattr(method, parameter.name)
        assert getattr(again, parameter.name) is given, parameter.name
        tables = ("groups", "attributes", "validation_groups", "clean_dataset", "held_out")
        tables += ("biased", "trajectories", "sources")
        if parameter.name not in tables:
            assert type(given) in (int, float, bool, str, dict, type(None)), parameter.name


def test_runs_with_its_defaults(method):
    assert isinstance(method(), Method)


def test_declares_its_state(active):
    """Everything named in ``state`` is there before training, and a constructor sets no more."""
    method = active()
    arguments = {p.name for p in parameters_of(type(method))}
    public = {name for name in vars(method) if not name.startswith("_")}
    of_the_base = {"groups", "head", "seed", "needs_groups", "needs_targets"}
    assert public - arguments - of_the_base == set(method.state)


def test_a_bad_argument_is_refused_by_name(method, case):
    for name, value in case.bad.items():
        with pytest.raises(ContractError) as refusal:
            method(**{name: value})
        assert name in str(refusal.value)
        assert str(value) in str(refusal.value)


def test_the_menu_holds_no_more_than_it_says():
    assert sorted(lightning_robust.__all__) == sorted(set(lightning_robust.__all__))
    assert all(hasattr(lightning_robust, name) for name in lightning_robust.__all__)


def test_a_method_that_may_need_groups_is_tried_with_bad_ones(active):
    """Otherwise `needs_groups` is missing from its case."""
    method = active()
    assert not method.needs_groups or CASES[type(method)].needs_groups is not None
