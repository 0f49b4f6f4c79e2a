"""A hook of MkDocs: the notebooks as pages, with the outputs that they keep.

mkdocs-jupyter would load scripts from elsewhere, and needs Jupyter.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds `my_data_notebook.md` beside `my_data.ipynb`."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = json.loads(Path(str(file.abs_src_path)).read_text(encoding="utf-8"))
        page = "\n\n".join(blocks(notebook, Path(file.src_uri).name))
        name = file.src_uri.replace(".ipynb", "_notebook.md")
        files.append(File.generated(config, name, content=page))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages, but for downloads."""
    return re.sub(r"(?<!\[Download\])(\([\w/]+)\.ipynb\)", r"\1_notebook.md)", markdown)


def blocks(notebook: dict[str, Any], name: str) -> Iterator[str]:
    """The cells and their outputs, as Markdown."""
    title, *rest = notebook["cells"]
    yield "".join(title["source"])
    yield f"[Download]({name}) the notebook; its outputs are those of a run."
    for cell in rest:
        text = "".join(cell["source"])
        yield f"```python\n{text}\n```" if cell["cell_type"] == "code" else text
        for output in cell.get("outputs", []):
            yield as_markdown(output)


def as_markdown(output: dict[str, Any]) -> str:
    """A figure, a table, or text."""
    data = {kind: "".join(lines) for kind, lines in output.get("data", {}).items()}
    if "image/png" in data:
        return f"![The figure](data:image/png;base64,{data['image/png'].strip()})"
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>|\n\s*", "", data["text/html"], flags=re.S)
        return html.replace('<table border="1" class="dataframe">', "<table>")  # as other tables
    text = data.get("text/plain") or "".join(output["text"])
    return f"```text\n{text.rstrip()}\n```"
