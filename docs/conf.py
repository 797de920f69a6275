"""How Sphinx builds these pages and the manual pages."""

import re
from pathlib import Path

_source = Path(__file__).resolve().parent.parent / "pvecfs" / "__init__.py"
_found = re.search(r'__version__ = "([^"]+)"', _source.read_text())
assert _found is not None

project = "pvecfs"
author = "the pvecfs maintainers"
copyright = author
release = version = _found.group(1)
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
root_doc = "index"
html_theme = "alabaster"
html_theme_options = {"page_width": "1040px", "show_powered_by": "false"}
html_show_copyright = False
html_copy_source = False
man_pages = [
    ("man/pvecfs", "pvecfs", "replicated configuration filesystem, as a service of twistd", [author], 8),
    ("man/pvecfs-db", "pvecfs-db", "examine, repair and carry a database of pvecfs or pmxcfs", [author], 8),
    ("man/pvecfs-health", "pvecfs-health", "say whether the pvecfs of this host is healthy", [author], 8),
]
man_make_section_directory = False
