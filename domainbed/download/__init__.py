"""Getting and verifying the published datasets; light to import: no PyTorch.

`catalogue` says where they come from, `fetch` brings files, `archives` unpacks them, `layouts`
finds the images in whatever came, `download` puts it all in place, and `verify` looks at what is
there.
"""

from __future__ import annotations

from domainbed.download.catalogue import SOURCES, Archive, Hub, Origin, Source
from domainbed.download.download import download_dataset
from domainbed.download.tree import Problem
from domainbed.download.verify import Verification, verify_dataset

__all__ = [
    "SOURCES",
    "Archive",
    "Hub",
    "Origin",
    "Problem",
    "Source",
    "Verification",
    "download_dataset",
    "verify_dataset",
]
