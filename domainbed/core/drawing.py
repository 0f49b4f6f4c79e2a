"""Figures without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed.core.files import written_aside
from domainbed.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")


def new_figure(**options: Any) -> Figure:
    """A figure that needs no display."""
    from matplotlib.figure import Figure  # slow to import, and few commands draw

    return Figure(**options)


def check_figure_file(flag: str, file: Path | str) -> None:
    """Makes sure that a figure can be written, before anything is computed for it.

    Args:
        flag: what asked for the figure, for the error.
        file: where it is to be written.

    Raises:
        UserError: matplotlib cannot write such a file, or there is no such folder.
    """
    if Path(file).suffix.lower() not in FORMATS:
        raise UserError(f"{flag} {str(file)!r}: the file must end with {', '.join(FORMATS)}")
    if not Path(file).parent.is_dir():
        raise UserError(f"{flag} {str(file)!r}: there is no such folder; make it first")


def save_figure(figure: Figure, flag: str, file: Path, dpi: int) -> None:
    """Writes a figure in the format of the file's name.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with written_aside(file) as aside:
            figure.savefig(aside, format=file.suffix[1:].lower(), dpi=dpi)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot write {flag} {str(file)!r}: {reason}") from error
