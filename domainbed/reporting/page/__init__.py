"""The report: one HTML file that needs no network, with all that a sweep has to show."""

from domainbed.reporting.page.content import build_page
from domainbed.reporting.page.html import Page, to_html

__all__ = ["Page", "build_page", "to_html"]
