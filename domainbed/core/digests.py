"""Digests of what this program writes and reads again: a changed file is noticed when it is read.

The text of a JSON object or of a YAML file carries its digest at its beginning, so that there is no
second file that could be lost. Text without one was written by an earlier version, or by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHANGED = "its content does not have the digest that it was written with"

_KEY = "sha256"
_SEAL = re.compile(rb'(?:\{"sha256": "|# sha256 )([0-9a-f]{64})(?:",|: [^\n]*\n)')


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
    return seal is None or seal[1].decode() == digest_of(text[seal.end() :])


def read_sealed_json(file: Path) -> dict[str, Any]:
    """The object in a file of JSON, without its digest.

    Raises:
        ValueError, RecursionError: it does not have its digest, or is no JSON object.
        OSError: it cannot be read.
    """
    text = file.read_bytes()
    if not has_its_digest(text):
        raise ValueError(CHANGED)
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    content.pop(_KEY, None)
    return content
