"""Rows of delimited files and of JSON Lines, as spreadsheets and databases write them."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from domainbed.core.files import regular
from domainbed.core.names import MANIFESTS
from domainbed.core.plugins import warn_once
from domainbed.errors import UserError, did_you_mean

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Rows:
    """What a file says.

    Attributes:
        file: it.
        names: of its columns, or keys, in order.
        rows: the number of each line, and its values by the names of their columns: text, or what
            JSON has. Lines without any text are left out.
    """

    file: Path
    names: Sequence[str]
    rows: Sequence[tuple[int, Mapping[str, Any]]]

    def columns(
        self, chosen: Mapping[str, str], required: Sequence[str], optional: Sequence[str] = ()
    ) -> dict[str, str]:
        """The column of each role that has one: the chosen one, or that of the role's own name.

        Args:
            chosen: what a run's field `columns` says, by role.
            required: the roles that need a column.
            optional: other roles.

        Raises:
            UserError: there is no such role, or no such column, or two of a name.
        """
        known, found = (*required, *optional), {}
        if unknown := set(chosen).difference(known):
            hint = did_you_mean(min(unknown), known)
            raise UserError(
                f"columns names the role {min(unknown)!r}.{hint} Known: "
                f"{', '.join(dict.fromkeys((*known, 'group', 'attribute')))}",
                *("columns", min(unknown)),
            )
        for role in known:
            column = chosen.get(role, role)
            number = self.names.count(column)
            if number > 1 or (not number and (role in required or role in chosen)):
                raise UserError(
                    f"{self.file}, line 1: {number} columns {column!r} in "
                    f"{', '.join(self.names)!r}: expected {', '.join(required)}, each once, or "
                    f"other names in the field 'columns', as in {{{role}: NAME}}",
                    "columns",
                )
            if number:
                found[role] = column
        return found


# Names of columns, in lower case, whose values samples share in other ways than by chance.
_LIKE_GROUPS = re.compile(
    "(patient|subject|person|participant|individual|animal|donor|case|study|exam|group|scene|site|"
    "location|session|sequence|video|burst|slide)s?([ _-]?(id|no|nr|number|code|name))?"
)


def in_order(names: Iterable[str]) -> list[str]:
    """Each once, in name order, or in numeric order where all are whole numbers."""
    found = sorted(set(names))
    if all(re.fullmatch(r"-?\d+", name) for name in found):
        found.sort(key=int)
    return found


def by_roles(roles: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, Any]:
    """Attributes of a dataset that say which samples validate, their groups and attributes.

    Args:
        roles: for each domain the texts of its samples, by `split` ("out" or "val" validates),
            `group` and `attribute`; other roles are not looked at.
    """
    found: dict[str, Any] = {}
    if "split" in roles:
        found["out_splits"] = [
            [i for i, text in enumerate(own) if text in ("out", "val")] for own in roles["split"]
        ]
    if "group" in roles:
        found["groups"] = roles["group"]
    if "attribute" in roles:
        names = in_order(chain(*roles["attribute"]))
        numbers = [[names.index(text) for text in own] for own in roles["attribute"]]
        found |= {"attribute_names": names, "attributes": numbers}
    return found


def name_ignored_groups(rows: Rows, columns: Mapping[str, str]) -> None:
    """Warns of columns that look like groups, and that no role has."""
    ignored = [name for name in rows.names if _LIKE_GROUPS.fullmatch(name.lower())]
    for name in sorted(set(ignored).difference(columns.values())) * ("group" not in columns):
        warn_once(
            f"{rows.file}: the column {name!r} is no group: samples of one {name} may train and "
            f"validate; to keep them together, set columns to {{group: {name}}}"
        )


def read_rows(file: Path) -> Rows:
    """The rows of a file ending in .csv, .tsv or .jsonl (one object a line).

    The text is UTF-8, UTF-16 with a byte order mark, or else, with a warning, Windows' cp1252;
    values are separated by commas, semicolons, tabs or bars.

    Raises:
        UserError: the file is not such a file; the message names the line.
        OSError: it cannot be read.
    """
    if file.suffix.lower() not in MANIFESTS:
        raise UserError(f"{str(file)!r}: expected a file ending in {', '.join(MANIFESTS)}")
    stream = io.StringIO(_text(file), newline="")
    if file.suffix.lower() == ".jsonl":
        rows = list(_json_rows(stream, file))
        return Rows(file, list(dict.fromkeys(name for _, row in rows for name in row)), rows)
    header = stream.readline()
    stream.seek(0)
    # Of equals the comma; a name in quotes may contain the others.
    separator = max(",;\t|", key=lambda each: len(next(csv.reader([header], delimiter=each), [])))
    reader = csv.DictReader(stream, strict=True, delimiter=separator)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        return Rows(file, reader.fieldnames, list(_csv_rows(reader, file)))
    except csv.Error as error:
        raise UserError(
            f"{file}, line {reader.reader.line_num}: not valid CSV ({error}): correct that line"
        ) from error


def _text(file: Path) -> str:
    content = regular(file).read_bytes()
    marked = [encoding for mark, encoding in _MARKS.items() if content.startswith(mark)]
    for encoding in marked or ["utf-8", "cp1252"]:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:  # UTF-16 without a mark, UTF-32, or no text at all
            break
        if encoding == "cp1252":
            warn_once(f"{file} is not UTF-8: it is read as cp1252, the encoding of Windows")
        return text
    raise UserError(f"{file} is neither UTF-8 nor marked UTF-16 nor cp1252 text: save it as UTF-8")


def _csv_rows(reader: csv.DictReader[str], file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for row in reader:
        if None in row:
            raise UserError(
                f"{file}, line {reader.line_num}: more values than columns: put values that "
                f"contain {reader.reader.dialect.delimiter!r} in double quotes"
            )
        if any(row.values()):  # spreadsheets write lines of nothing but separators
            yield reader.line_num, row


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, none of whose keys may be given twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is given twice")
    return row


def _json_rows(stream: io.StringIO, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file}, line {number}: not valid JSON ({error}): write one object a line"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{file}, line {number}: not a JSON object: write one object a line")
        yield number, row
