"""Sphinx settings: `make docs` builds docs/_build/html, warnings are errors."""

import re
from importlib.metadata import version as _version

project = "funcnet"
author = "the funcnet authors"
project_copyright = "2026, the funcnet authors"
release = version = _version("funcnet")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "funcnet"
nitpicky = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True


def _stars(_app, _what, _name, _obj, _options, lines):
    """In docstrings *n are axes, not the beginning of an emphasis."""
    lines[:] = [re.sub(r"(?<!\*)\*(?=\w)", r"\\*", line) for line in lines]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _stars)
