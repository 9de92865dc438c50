"""The docs site: `make site` builds it into build/site, tests/test_site.py does so strictly.

Sphinx reads the same Markdown that GitHub shows. Pages are in the order of _toc.yml; one that is missing there, a link
or an anchor that leads nowhere, is a warning, and a warning ends the build. Nothing is fetched, then or by a reader's
browser.
"""

project = "vidaccel"
html_title = "vidaccel"
extensions = ["myst_parser", "sphinx_external_toc"]
myst_heading_anchors = 4
smartquotes = False  # quotes are often code
html_theme = "furo"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
