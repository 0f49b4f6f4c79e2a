"""Getting and verifying the published datasets; light to import: no PyTorch.

`catalogue` says where they come from, `fetch` downloads and unpacks, `layouts` finds the images in
whatever came, `download` puts them into place, and `verify` checks what is there.
"""

from domainbed.download.catalogue import SOURCES, Archive, DataSource, Origin
from domainbed.download.download import download_dataset, downloadable
from domainbed.download.verify import Problem, Verification, verify_dataset

__all__ = [
    "SOURCES",
    "Archive",
    "DataSource",
    "Origin",
    "Problem",
    "Verification",
    "download_dataset",
    "downloadable",
    "verify_dataset",
]
