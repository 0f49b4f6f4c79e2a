"""What a dataset consists of, as a run records it: names, numbers, and a digest of its files.

Files count by their content. It is read once: digests are cached beside the packs, and a file is
read again where its size or a time of it has changed.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from domainbed.core.files import cache_folder, regular, written_aside
from domainbed.core.image_files import CACHE_TAG, is_turned
from domainbed.core.text_table import printable
from domainbed.datasets.base import MultipleDomainDataset
from domainbed.datasets.domain import Domain
from domainbed.datasets.images.dataset_files import in_order, state_of
from domainbed.errors import log

_DIGEST = 16  # bytes
_THREADS = 8
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# made by domainbed\n"


def data_facts(
    dataset: MultipleDomainDataset,
    domains: Sequence[Domain],
    names: Sequence[str],
    data_dir: str,
    ignores_exif: bool = True,
) -> dict[str, Any]:
    """What tells a dataset from another of its name, as JSON values.

    Args:
        dataset: as it was loaded.
        domains: its domains, which are given the digests of their files.
        names: of the domains.
        data_dir: digests of files are cached below it.
        ignores_exif: whether images are left as they are stored, whatever their EXIF data say.

    Returns:
        `domains` and `classes`, their names; `images`, the number in each domain; and `digest`: of
        the names, the dataset's fingerprint and, where all inputs are files, of the files' contents
        and labels in their order. Where they are not, a dataset may draw them anew in each trial.
    """
    facts = {"domains": list(names), "classes": list(dataset.class_names)}
    digest = hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass"))
    digest.update(dataset.fingerprint.encode())
    if all(domain.files and domain.labels_at_hand for domain in domains):
        files = [file for domain in domains for file in domain.files]
        if dataset.features_folder is None:  # features have those of the files they came from
            dataset.digests = content_digests(files, cache_folder(data_dir))
        contents, turned = dataset.digests
        digest.update(contents.tobytes())
        ends = np.cumsum([len(domain) for domain in domains])
        for domain, own in zip(domains, np.split(contents, ends[:-1])):
            domain.contents = own
            digest.update(domain.labels.cpu().numpy().tobytes())
        if turned.any() and ignores_exif:
            log.warning(
                "warning: the EXIF data of %s images ask for turning, which is ignored, such as "
                "%s: the hyper-parameter orientation 'exif' turns them",
                f"{turned.sum():,}",
                printable(str(files[turned.argmax()])),
            )
    return {**facts, "images": [len(domain) for domain in domains], "digest": digest.hexdigest()}


def content_digests(files: Sequence[Path], cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """What is known of files once they were read.

    Returns:
        (n, 16) uint8, the digest of each one's content, zeros where it cannot be read; and (n,)
        whether its EXIF data ask for turning.
    """
    paths = [os.path.abspath(file) for file in files]
    key = hashlib.md5("\n".join(paths).encode("utf-8", "surrogateescape")).hexdigest()
    kept = cache / "contents" / f"{key}.npz"
    states = np.array([state_of(path) for path in paths], dtype=np.int64)
    digests = np.zeros((len(paths), _DIGEST), np.uint8)
    turned, known = np.zeros((2, len(paths)), bool)
    # Missing, cut off or damaged: NumPy's files have checksums, and raise anything.
    with suppress(Exception), np.load(kept) as before:
        digests, turned = before["digests"], before["turned"]
        # What could not be read once may be readable now.
        known = (before["states"] == states).all(axis=1) & digests.any(axis=1)
    unknown = np.flatnonzero(~known)
    if not len(unknown):
        return digests, turned
    read = in_order(_seen, [paths[i] for i in unknown], min(_THREADS, len(unknown)))
    shown = tqdm(read, "reading images once", len(unknown), unit="image", disable=None)
    for i, (digest, turned[i]) in zip(unknown, shown):
        digests[i] = np.frombuffer(digest, np.uint8)
    with suppress(OSError):  # a read-only folder costs time, nothing else
        kept.parent.mkdir(parents=True, exist_ok=True)
        (cache / CACHE_TAG).write_text(_TAG, encoding="utf-8")
        with written_aside(kept) as aside, aside.open("wb") as stream:
            np.savez(stream, states=states, digests=digests, turned=turned)
    return digests, turned


def _seen(path: str) -> tuple[bytes, bool]:
    try:
        content = regular(Path(path)).read_bytes()
    except OSError:  # whoever needs the image reports it
        return bytes(_DIGEST), False
    return hashlib.blake2b(content, digest_size=_DIGEST).digest(), is_turned(content)
