"""The one exception that means "the input was wrong", as opposed to "the program is wrong".

And the logger of what users should know that stops nothing.
"""

import difflib
import errno
import logging
import shlex
from collections.abc import Iterable

log = logging.getLogger("domainbed")


class UserError(Exception):
    """Bad input: one line that names the value, the place and the remedy.

    The command line prints it without a traceback and exits with status 2. Anything else that
    is raised is a programming error and keeps its traceback.

    Attributes:
        where: the field that is wrong, and keys and positions inside its value, where the fault
            lies in one: ("hparams", "lr"). Whoever knows where the field was given can say so.
    """

    def __init__(self, message: str, *where: str | int) -> None:
        # What users gave may hold line ends, and sequences that terminals obey.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))
        self.where = where


class UnknownName(UserError, KeyError):
    """A name that nothing has registered."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EMFILE),
)
_OUT_OF_MEMORY = (  # as PyTorch says it, of which only the GPU's has a class of its own
    "out of memory", "allocate memory", "Storage size calculation overflowed",
    "Invalid buffer size", "numel: integer multiplication overflow",
    "Overflow when unpacking long", "failed to map segment",
)  # fmt: skip
_DISK_FULL = "file write failed"  # PyTorch's word


def one_line(error: BaseException) -> str:
    """What an exception says, or is called."""
    return " ".join(str(error).split()) or type(error).__name__


def in_shell(*words: object) -> str:
    """Words of a command that a message suggests, quoted for the shell."""
    return shlex.join(map(str, words))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine, or its GPU, had not enough memory."""
    return isinstance(error, MemoryError) or any(part in str(error) for part in _OUT_OF_MEMORY)


def reason_of(error: Exception) -> str:
    """What to tell the user of an error that is not the program's fault; "" for others."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}" if error.errno in _OF_THE_MACHINE else ""
    if isinstance(error, UnicodeEncodeError):  # of a file's name
        return (
            f"{error.object!r} cannot be written in the locale's encoding, {error.encoding}: set "
            "PYTHONUTF8=1, or a locale with UTF-8, such as LC_ALL=C.UTF-8"
        )
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, RecursionError):
        return f"something is nested too deeply ({first}): --debug shows where"
    if is_out_of_memory(error):
        return (
            f"there is not enough memory ({first}): choose a smaller batch_size, or fewer workers"
        )
    return f"a file cannot be written ({first}): is the disk full?" if _DISK_FULL in first else ""


FEW_NAMES = 12
"""The most names that a message lists beside the one that was meant."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What a misspelt name may mean: " Did you mean 'x'?", or nothing if no known name is near."""
    by_lower = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.51)
    return f" Did you mean {by_lower[nearest[0]]!r}?" if nearest else ""
