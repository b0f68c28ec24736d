"""Sphinx: `sphinx-build -W docs docs/_build` with the extra `docs` installed."""

from lightning_robust import __version__

project = "lightning-robust"
author = "The lightning-robust authors"
copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape"]

html_theme = "furo"
html_title = f"lightning-robust {version}"
