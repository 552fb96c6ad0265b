"""Settings of the documentation: ``make docs`` builds it, without any network."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

project = "STIPPLE for MONAI"
author = "The STIPPLE for MONAI authors"
copyright = f"2026, {author}"
version = release = installed("stipple-monai")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "command_line",
    "mathml",
    "measured",
    "outside_pages",
    "packages",
    "public_names",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "results"]

# Blocks without a language are commands.
highlight_language = "text"
# What docstrings put in single backquotes are names.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_use_ivar = True
napoleon_numpy_docstring = False

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 4

# Every reference must resolve. Other packages' inventories lie on the network, which a build must
# not need, so that their names stay text.
nitpicky = True
STANDARD = ("collections", "os", "pathlib", "typing")
OTHERS = ("ignite", "matplotlib", "monai", "nibabel", "numpy", "np", "scipy", "torch")
nitpick_ignore_regex = [(r"py:.*", rf"{name}(\..*)?") for name in (*STANDARD, *OTHERS)]
# how annotations that were never evaluated spell some of them
nitpick_ignore_regex += [
    (
        "py:class",
        r"Tensor|Flip|tuple\[str|NDArray|Path|Block|Verdict|stipple_monai\.priors\.cases\.(Cases|Volumes)",
    )
]

html_theme = "pydata_sphinx_theme"
html_title = project
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
