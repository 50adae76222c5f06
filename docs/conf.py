"""Sphinx settings: `make docs` builds docs/_build/html, warnings are errors."""

import sys
from importlib.metadata import version as _version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

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
    "reference",
    "executed",
]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "funcnet"
html_static_path = ["static"]
html_css_files = ["site.css"]
default_role = "code"
nitpicky = False
suppress_warnings = ["ref.python"]  # every net has a Config
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
maximum_signature_line_length = 100
pygments_dark_style = "github-dark"
_names = {
    "color-api-name": "var(--color-brand-content)",
    "color-api-pre-name": "var(--color-foreground-muted)",
}
html_theme_options = {"light_css_variables": _names, "dark_css_variables": _names}
