"""A hook of MkDocs: the report of a real sweep, made from its records, is a page of the site."""

import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from domainbed.reporting import build_report, load_records, planned_gaps, planned_selection
from domainbed.reporting.page import build_page, to_html

RECORDS = Path(__file__).parent / "examples" / "quickstart.tar.xz"
PAGE = "examples/quickstart_report.html"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the report to the site."""
    with TemporaryDirectory() as folder, tarfile.open(RECORDS) as records:
        records.extractall(folder, filter="data")
        sweep = Path(folder, "quickstart")
        report = build_report(
            load_records(sweep), planned_selection(sweep), gaps=planned_gaps(sweep)
        )
        html = to_html(build_page(report, sweep)).replace(f"{folder}/", "results/")
    files.append(File.generated(config, PAGE, content=html))
    return files
