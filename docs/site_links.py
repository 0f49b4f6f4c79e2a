"""A hook of MkDocs: links that leave docs/ are for readers of the repository, not of the site."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leaves only the text of links such as `[spec.py](../domainbed/spec.py)`."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)
