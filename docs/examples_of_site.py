"""A hook of MkDocs: the report of a real sweep, and all its figures, made from its records."""

import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import domainbed
from domainbed.reporting.figures import FIGURES

RECORDS = Path(__file__).parent / "examples" / "quickstart.tar.xz"
REPORT = "examples/quickstart_report.html"
GALLERY = """# Gallery

All figures of the quickstart, as [`domainbed plot`](report.md#figures-for-papers) draws them, with
fonts embedded and colours that colour-blind people can tell apart. `hparams` is not among them: it
needs several draws of the hyper-parameters, and the quickstart has one.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the report, the figures and the page that shows them to the site."""
    with TemporaryDirectory() as folder, tarfile.open(RECORDS) as records:
        records.extractall(folder, filter="data")
        sweep = Path(folder, "quickstart")
        html = domainbed.report(sweep).read_text(encoding="utf-8")
        files.append(File.generated(config, REPORT, content=html.replace(f"{folder}/", "results/")))
        page = GALLERY
        for kind in [kind for kind in FIGURES if kind != "hparams"]:
            command = f"domainbed plot results/quickstart {kind} -o {kind}.pdf"
            page += f"\n## {kind}\n\n```sh\n{command}\n```\n"
            domainbed.plot(sweep, kind, Path(folder, f"{kind}.svg"))
            for file in sorted(Path(folder).glob(f"{kind}*.svg")):
                name = f"gallery/{file.name}"
                files.append(File.generated(config, name, content=file.read_bytes()))
                page += f"\n![{kind} of the quickstart]({name})\n"
    files.append(File.generated(config, "gallery.md", content=page))
    return files
