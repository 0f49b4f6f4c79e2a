"""Figures without a display, where matplotlib is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from domainbed.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**options: Any) -> Figure:
    """A figure that needs no display.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "plots need matplotlib, which is not installed: pip install 'domainbed[plots]'"
        ) from error
    return Figure(**options)
