"""Digests of what this program writes and reads again: a changed file is noticed when it is read.

The text of a JSON object or of a YAML file begins with its digest; that of another file lies beside
it. What has none was written by an earlier version, or by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domainbed.core.files import file_digest, write_text

CHANGED = "its content does not have the digest that it was written with"

_KEY = "sha256"
_SEAL = re.compile(rb'(?s)(?:\{"sha256": "|# sha256 )(.{64})(?:",|: [^\n]*\n)')
_DAMAGED_SEAL = re.compile(rb"(?s).{9}(.{3})?[0-9a-f]{64}(?![0-9a-f])")


def digest_of(content: bytes | memoryview) -> str:
    """The SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sealed_json(content: Mapping[str, Any], **options: Any) -> str:
    """A JSON object that is not empty, and a newline; `options` are those of `json.dumps`."""
    rest = json.dumps(content, **options)[1:] + "\n"
    return f'{{"{_KEY}": "{digest_of(rest.encode())}",{rest}'


def sealed_yaml(text: str) -> str:
    """YAML with a first line that says what the digest of the other lines is."""
    digest = digest_of(text.encode())
    return f"# {_KEY} {digest}: of the lines below; remove this line to change them\n{text}"


def has_its_digest(text: bytes) -> bool:
    """Whether a text has the digest at its beginning, or there is none."""
    seal = _SEAL.match(text)
    if seal is None:
        return _DAMAGED_SEAL.match(text) is None
    return seal[1] == digest_of(text[seal.end() :]).encode()


def read_sealed_json(file: Path) -> dict[str, Any]:
    """The object in a file of JSON, without its digest.

    Raises:
        ValueError, RecursionError: it does not have its digest, or is no JSON object.
        OSError: it cannot be read.
    """
    return parse_sealed_json(file.read_bytes())


def parse_sealed_json(text: bytes) -> dict[str, Any]:
    """The object in the text of a file, as `read_sealed_json`."""
    if not has_its_digest(text):
        raise ValueError(CHANGED)
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    content.pop(_KEY, None)
    return content


def digest_file(file: Path) -> Path:
    """Where the digest of a file lies that is no text."""
    return file.with_name(f"{file.name}.sha256")


def write_digest(file: Path, aside: Path) -> None:
    """Writes the digest of what lies in `aside` and will be moved to `file`."""
    write_text(digest_file(file), file_digest(aside) + "\n")


def differs_from_digest(file: Path) -> bool:
    """Whether a digest lies beside a file that it does not have."""
    known = digest_file(file)
    return known.exists() and known.read_bytes().strip() != file_digest(file).encode()
