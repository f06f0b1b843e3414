"""Sphinx builds docs/ into docs/_build: `make docs`."""

import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project, author = "ganfast", "the authors of ganfast"
release = import_module("ganfast").__version__  # found by the path above
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "generated",
]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", f"ganfast {release}"
html_show_copyright = False
default_role = "code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say types and shapes in words
napoleon_use_rtype = False
napoleon_use_param = False
# Docstrings name classes without their module, and pages of other projects are not linked.
nitpick_ignore_regex = [("py:.*", r"(?!ganfast\.).*")]
