"""The Hugging Face Hub, as a server on this machine that speaks its interface."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import json
import threading

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from source_files import content_of, image_bytes

from domainbed.datasets import DATASETS, PACS
from domainbed.download import catalogue
from domainbed.download.catalogue import DataSource, Origin
from domainbed.errors import UserError

COMMIT = hashlib.sha1(b"commit").hexdigest()
ROWS_PER_FILE = 20


class HubHandler(http.server.BaseHTTPRequestHandler):
    """`server.files`: the repository; `server.broken`: names whose download fails."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path, files = self.path.partition("?")[0], self.server.files
        if path.startswith("/api/datasets/some/pacs/tree/"):
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                for name, content in files.items()
            ]
            return self.send(json.dumps(listed).encode(), body)
        if path.startswith("/api/datasets/some/pacs"):
            siblings = [{"rfilename": name} for name in files]
            about = {"id": "some/pacs", "sha": COMMIT, "siblings": siblings, "private": False}
            return self.send(json.dumps(about).encode(), body)
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in files or (body and name in self.server.broken):
            return self.send_error(404)
        self.server.served += [name] * body
        self.send(files[name], body)

    def send(self, content, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{oid(content)}"')
        self.end_headers()
        if body:
            with contextlib.suppress(OSError):
                self.wfile.write(content)


def oid(content):
    """What git calls the content; the Hub's clients compare it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The server; `hub.files` is what the repository some/pacs holds."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.files, server.broken, server.served = {}, set(), []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    for module in (huggingface_hub.constants, huggingface_hub.hf_api.constants):
        monkeypatch.setattr(module, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    origin = Origin(sources=(DataSource("mirror", 1000, hub="some/pacs"),))
    monkeypatch.setitem(catalogue.SOURCES, "PACS", origin)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def parquet_files(files, named=True, domain_names=None, classes=PACS.info.classes):
    """The files as rows of Parquet files, as the library `datasets` writes them."""
    features = datasets.Features(
        image=datasets.Image(),
        domain=datasets.ClassLabel(names=domain_names)
        if domain_names
        else datasets.Value("string"),
        label=datasets.ClassLabel(names=classes) if classes else datasets.Value("int64"),
    )
    parts = [name.split("/") for name in files]
    columns = {
        "image": [
            {"bytes": content, "path": part[2] if named else None}
            for part, content in zip(parts, files.values(), strict=True)
        ],
        "domain": [domain_names.index(p[0]) if domain_names else p[0] for p in parts],
        "label": [PACS.info.classes.index(part[1]) for part in parts],
    }
    table = pyarrow.Table.from_pydict(columns, schema=features.arrow_schema)
    made = {"README.md": b"A dataset"}
    for k, start in enumerate(range(0, len(files), ROWS_PER_FILE)):
        stream = io.BytesIO()
        pyarrow.parquet.write_table(table.slice(start, ROWS_PER_FILE), stream)
        made[f"data/train-{k:05d}-of-00002.parquet"] = stream.getvalue()
    return made


def test_rows_become_the_published_folders(hub, pacs, said, tmp_path):
    hub.files = parquet_files(pacs)
    text = said("PACS")
    assert content_of(tmp_path / "data" / "PACS") == pacs
    assert "splits, which follow the order of the names" in text
    assert sorted(hub.served) == sorted(hub.files)


def test_names_of_domains_and_of_files_without_name(hub, pacs, said, tmp_path):
    pacs["photo/dog/pic_000.jpg"] = image_bytes(1000, "png")
    other = {"art_painting": "Art Painting", "cartoon": "Cartoon", "photo": "PHOTO"}
    renamed = {"/".join([other.get(d, d), c, n]): v for (d, c, n), v in _split(pacs)}
    hub.files = parquet_files(renamed, False, ["Art Painting", "Cartoon", "PHOTO", "sketch"])
    said("PACS")
    found = content_of(tmp_path / "data" / "PACS")
    assert sorted(found.values()) == sorted(pacs.values())
    place = next(name for name, content in found.items() if content == image_bytes(1000, "png"))
    assert place == "photo/dog/000017.png"
    for name, content in found.items():
        original = next(k for k, v in pacs.items() if v == content)
        assert name.split("/")[:2] == original.split("/")[:2]
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == (5, 6)


def _split(files):
    return [(name.split("/"), content) for name, content in files.items()]


def test_broken_snapshot_goes_on(hub, pacs, said, tmp_path):
    hub.files = parquet_files(pacs)
    last = max(hub.files)
    hub.broken = {last}
    with pytest.raises(UserError, match=r"mirror: .*404"):
        said("PACS")
    assert not (tmp_path / "data" / "PACS").exists()
    hub.broken, hub.served = set(), []
    said("PACS")
    assert hub.served == [last]
    assert content_of(tmp_path / "data" / "PACS") == pacs


def test_no_connection(hub, pacs, said, monkeypatch, tmp_path):
    """The part of an earlier call must not pass for the dataset, even if asked to be lenient."""
    hub.files = parquet_files(pacs)
    hub.broken = {max(hub.files)}
    with pytest.raises(UserError):
        said("PACS")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"\(mirror: Connection refused\)"):
        said("PACS", accept_incomplete=True)


def test_snapshot_that_somebody_has(pacs, said, tmp_path):
    folder = tmp_path / "snapshot"
    for name, content in parquet_files(pacs).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    said("PACS", folder)
    assert content_of(tmp_path / "data" / "PACS") == pacs
    (folder / "data" / "train-00000-of-00002.parquet").write_bytes(b"damaged")
    (tmp_path / "data" / "PACS").rename(tmp_path / "before")
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet is damaged"):
        said("PACS", folder)


def test_labels_without_names(hub, pacs, said):
    hub.files = parquet_files(pacs, classes=None)
    with pytest.raises(UserError, match="column 'label' holds 0, which is not the name of a label"):
        said("PACS")


def test_row_without_image(hub, pacs, said):
    pacs["photo/dog/pic_000.jpg"] = None
    hub.files = parquet_files(pacs)
    with pytest.raises(UserError, match="row 17 of the Parquet files holds no image"):
        said("PACS")


def test_other_columns(hub, pacs, said):
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"picture": [1]}), stream)
    hub.files = {"a.parquet": stream.getvalue()}
    with pytest.raises(UserError, match="no column 'image': its columns are picture"):
        said("PACS")


def test_all_repositories_are_named():
    hubs = [origin.sources[-1].hub for origin in catalogue.SOURCES.values()]
    assert [hub.count("/") for hub in hubs if hub] == [1] * 5
    assert set(catalogue.SOURCES) <= set(DATASETS)
