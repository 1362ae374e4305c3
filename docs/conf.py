"""The settings of Sphinx: `make docs` builds the pages from the Markdown files of this folder and the docstrings."""

from __future__ import annotations

import os
import re
from typing import Any

# The notebooks inherit it: with one thread each, two builds at a time do not slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import art_aft
from art_aft import public

project = "art_aft"
author = "The art_aft authors"
project_copyright = author
version = release = art_aft.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "myst_nb"]
templates_path = ["_templates"]
exclude_patterns = ["_templates"]

# A reference that leads nowhere is an error, together with `-n -W` of the Makefile.
nitpicky = True
nitpick_ignore_regex = [
    # Names of other packages: their pages could only be asked for over the network, which a build must not need.
    (r"py:.*", r"(abc|argparse|collections|contextlib|enum|io|pathlib|types|typing)(\..*)?"),
    (r"py:.*", r"(art|joblib|keras|matplotlib|np|numpy|PIL|scipy|sklearn|tensorflow|torch|torchattacks|tqdm)(\..*)?"),
    # The same names without their package, as they stand in some annotations.
    (r"py:class", r"(EvasionAttack|Module|Path|PyTorchClassifier)"),
    # Aliases of types, which Sphinx before 9 writes without their module.
    (r"py:class", r"(LabelMap|Teacher|Transform)"),
    # Type variables have no page.
    (r"py:.*", r"art_aft\.(data\.pixels\.Images|detection\.base\.T|registry\.T)"),
]

# Names stand in single backquotes in the docstrings, as in Markdown.
default_role = "code"
highlight_language = "none"

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of torch and ART are not ours
autodoc_default_options = {"members": True, "show-inheritance": True}
autosummary_generate = True
# Each name is described once: those of `art_aft` itself on the page api.md, the others on the page of their module.
autosummary_context = {"public": public.__all__}

myst_heading_anchors = 3

# The notebooks are executed at every build; an error in one of them ends it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars

html_theme = "furo"
html_title = f"art_aft {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}
html_copy_source = False
html_show_sphinx = False


#: Files outside this folder that pages link to, and the pages that include them.
INCLUDED = {
    "../CONTRIBUTING.md": "adding.md",
    "../examples/results/README.md": "results.md",
    "../examples/results": "results.md",
}


def lead_to_pages(app: Any, name: str, source: list[str]) -> None:
    """Have links to files outside this folder lead to the pages that include them."""

    def target(match: re.Match[str]) -> str:
        return f"]({INCLUDED.get(match[1], match[1])}"

    source[0] = re.sub(r"\]\((\.\./[^)#]*)", target, source[0])


def escape(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Have stars and bars stand for themselves: docstrings write shapes as (N, *input_shape) and norms as |x|."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"(?<!\\)([*|])(?=\S)", r"\\\1", part) for part in parts[::2]]
            lines[number] = "".join(parts)


def leave_out(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave a name of `art_aft` itself out of the page of its module; None leaves the choice to Sphinx."""
    inside = what == "module" and any(obj is vars(public)[each] for each in public.__all__)
    return True if inside else None


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("source-read", lead_to_pages)
    app.connect("autodoc-process-docstring", escape)
    app.connect("autodoc-skip-member", leave_out)
