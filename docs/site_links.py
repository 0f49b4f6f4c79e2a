"""A hook of MkDocs: links that leave docs/ are for readers of the repository, not of the site."""

import re
from typing import Any

from mkdocs.structure.pages import Page


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Leaves only the text of links such as `[spec.py](../domainbed/spec.py)`."""
    up = "../" * (page.file.src_uri.count("/") + 1)
    return re.sub(rf"\[([^\]]+)\]\({re.escape(up)}[^)]+\)", r"\1", markdown)
