"""Sphinx: `sphinx-build -W docs docs/_build` with the extra `docs` installed.

Notebooks are shown as they are stored, without outputs; DOCS_EXECUTE_NOTEBOOKS=cache runs them.
"""

import os
import pkgutil
import shutil
from importlib import import_module
from pathlib import Path
from urllib.request import urlopen

from docutils import nodes
from sphinx.addnodes import pending_xref

import lightning_robust

DOCS = Path(__file__).parent
CALLBACKS = "lightning_robust.callbacks."

project = "lightning-robust"
author = "The lightning-robust authors"
copyright = f"2026, {author}"
release = version = lightning_robust.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = os.environ.get("DOCS_EXECUTE_NOTEBOOKS", "off")
nb_execution_timeout = 600
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape"]

html_theme = "furo"
pygments_style = "default"
html_title = f"lightning-robust {version}"

shutil.copytree(DOCS.parent / "notebooks", DOCS / "notebooks", dirs_exist_ok=True)


def reachable(address):
    """Without a network the pages are built without links to other projects."""
    try:
        with urlopen(f"{address}/objects.inv", timeout=5):
            return True
    except OSError:
        return False


intersphinx_mapping = {
    name: (address, None)
    for name, address in {
        "lightning": "https://lightning.ai/docs/pytorch/stable",
        "torch": "https://docs.pytorch.org/docs/stable",
        "torchmetrics": "https://lightning.ai/docs/torchmetrics/stable",
    }.items()
    if reachable(address)
}


def place_of(name):
    """Where the pages describe a name of the menu."""
    module = getattr(lightning_robust, name).__module__
    page = module.removeprefix(CALLBACKS)
    if (DOCS / "methods" / f"{page}.md").exists():
        return "std", "doc", f"/methods/{page}"
    top = name == "Method" or module.startswith("lightning_robust.auditing")
    return "py", "obj", f"lightning_robust.{name}" if top else f"{module}.{name}"


PLACES = {name: place_of(name) for name in lightning_robust.__all__}


def link_names(app, doctree):
    """Makes a link of every `SPARE` in the text."""
    page = app.env.docname
    for literal in list(doctree.findall(nodes.literal)):
        domain, kind, target = PLACES.get(literal.astext(), ("", "", f"/{page}"))
        if target != f"/{page}" and isinstance(literal.parent, nodes.paragraph):
            to = {"refdomain": domain, "reftype": kind, "reftarget": target}
            link = pending_xref("", literal.deepcopy(), **to, refexplicit=True, refdoc=page)
            literal.replace_self(link)


def list_names(app, docname, source):
    """Puts lists into pages: of the callbacks, and of the modules of a package."""
    lines = []
    for line in source[0].split("\n"):
        match line.split():
            case ["%callbacks"]:
                names = [name for name, place in PLACES.items() if place[0] == "std"]
                lines += ["```{eval-rst}", ".. currentmodule:: lightning_robust", ""]
                lines += [".. autosummary::", "", *(f"   {name}" for name in names), "```"]
            case ["%modules", package, *options]:
                for module in pkgutil.iter_modules(import_module(package).__path__):
                    title = module.name if options else f"`{package}.{module.name}`"
                    lines += [f"## {title}", "", "```{eval-rst}"]
                    lines += [f".. automodule:: {package}.{module.name}"]
                    lines += [f"   {option}" for option in options]
                    lines += ["```", ""]
            case _:
                lines.append(line)
    source[0] = "\n".join(lines)


def setup(app):
    app.connect("source-read", list_names)
    app.connect("doctree-read", link_names)
