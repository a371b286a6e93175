"""Configuration of the documentation; `make docs` builds it with warnings as errors."""

from __future__ import annotations

from importlib.metadata import version as installed_version

project = "flask-redis-guard"
author = "The flask-redis-guard maintainers"
copyright = "The flask-redis-guard maintainers"
release = installed_version("flask-redis-guard")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

# What the pages say of ours must be there. Types of annotations are internal or other projects',
# whose inventories are not asked: the site builds without a network.
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]

html_theme = "furo"
html_title = f"flask-redis-guard {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
