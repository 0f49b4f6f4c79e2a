"""Texts that carry their digest: any change is noticed, and what has none is read."""

import json
import random

import pytest

from domainbed.core.files import CHANGED, read_sealed_json, sealed_json, sealed_yaml
from domainbed.core.yaml_file import read_yaml
from domainbed.errors import UserError

CONTENT = {"version": 1, "runs": {"a": {"seed": 7, "lr": 1e-3}}, "why": "größer", "none": None}


@pytest.mark.parametrize("indent", [None, 2])
def test_every_bit_of_an_object_counts(tmp_path, indent):
    file = tmp_path / "plan.json"
    file.write_text(sealed_json(CONTENT, indent=indent))
    assert read_sealed_json(file) == CONTENT
    whole = file.read_bytes()
    assert {"sha256", *CONTENT} == set(json.loads(whole))
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            with pytest.raises(ValueError):  # noqa: PT011  (JSON's own errors, or the digest's)
                read_sealed_json(file)


def test_damage_to_the_digest_hides_no_other(tmp_path):
    """Several bits, of the digest, of its name and of a number."""
    file, rng = tmp_path / "plan.json", random.Random(0)
    whole = sealed_json(CONTENT).encode()
    number = whole.index(b"7, ")
    for _ in range(300):
        changed = bytearray(whole)
        changed[number] = ord(rng.choice("012345689"))
        changed[rng.randrange(80)] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(ValueError):  # noqa: PT011
            read_sealed_json(file)


def test_every_bit_of_a_config_counts(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(sealed_yaml("datasets: [PACS]\nsteps: 300  # größer\n"))
    expected = {"datasets": ["PACS"], "steps": 300}
    assert read_yaml(file)[0] == expected
    whole = file.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            assert read_yaml(file)[0] == expected  # a word of the first line
        except UserError:
            continue
        assert b"\n" not in whole[: place + 1]
    head, _, rest = whole.partition(b"\n")
    file.write_bytes(head + b"\n" + rest.replace(b"300", b"301"))
    with pytest.raises(UserError, match=r"sweep\.yaml is damaged .* remove its first line"):
        read_yaml(file)
    file.write_bytes(rest.replace(b"300", b"301"))  # as the error says
    assert read_yaml(file)[0] == {**expected, "steps": 301}


def test_what_has_no_digest_is_read(tmp_path):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(CONTENT))
    assert read_sealed_json(file) == CONTENT
    file.write_text("[1]")
    with pytest.raises(ValueError, match="no JSON object"):
        read_sealed_json(file)
    file.write_text(sealed_json(CONTENT).replace("7", "8"))
    with pytest.raises(ValueError, match=CHANGED):
        read_sealed_json(file)
