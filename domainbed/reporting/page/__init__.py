"""The report: one HTML file that needs no network, with all that a sweep has to show."""

from domainbed.reporting.page.content import build_page
from domainbed.reporting.page.html import to_html
from domainbed.reporting.page.part import Page

__all__ = ["Page", "build_page", "to_html"]
