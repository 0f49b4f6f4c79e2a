"""The Hugging Face Hub, as a server on this machine that speaks its interface."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
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
import small_copies
from PIL import Image
from small_copies import COPIES, write_copy
from source_files import content_of, image_bytes, visible, write, write_tar

from domainbed.datasets import DATASETS, PACS
from domainbed.download import catalogue
from domainbed.download.catalogue import DataSource, Origin
from domainbed.download.verify import verify_dataset
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
        server, path = self.server, self.path.partition("?")[0]
        files = server.files
        if path.startswith(f"/api/datasets/{server.repository}/tree/"):
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                for name, content in files.items()
            ]
            return self.send(json.dumps(listed).encode(), body)
        if path.startswith(f"/api/datasets/{server.repository}"):
            siblings = [{"rfilename": name} for name in files]
            about = {"id": server.repository, "sha": COMMIT, "siblings": siblings, "private": False}
            return self.send(json.dumps(about).encode(), body)
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in files or (body and name in server.broken):
            return self.send_error(404)
        server.served += [name] * body
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
    """The server; `hub.files` is what its repository holds: some/pacs, or `hub.repository`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.files, server.broken, server.served = {}, set(), []
    server.repository = "some/pacs"
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
    hubs = [source.hub for origin in catalogue.SOURCES.values() for source in origin.sources]
    assert [hub.count("/") for hub in hubs if hub] == [1] * 8
    assert set(catalogue.SOURCES) <= set(DATASETS)


class TestWILDS:
    """The Hub before CodaLab: archives of the authors with their sums, or Parquet files."""

    @pytest.fixture(autouse=True)
    def small_numbers(self, monkeypatch):
        small_copies.shrink(monkeypatch)
        for name in ("WILDSCamelyon", "WILDSFMoW"):
            origin = catalogue.SOURCES[name]
            small = tuple(dataclasses.replace(source, size=1000) for source in origin.sources)
            monkeypatch.setitem(catalogue.SOURCES, name, dataclasses.replace(origin, sources=small))

    @pytest.fixture
    def offer(self, hub, tmp_path):
        """Puts a packed copy of a dataset, and a list of sums, into the repository."""

        def put(repository, name, digest=None):
            archive = write_tar(tmp_path / "archive.tar.gz", COPIES[name]()).read_bytes()
            digest = digest or hashlib.sha256(archive).hexdigest()
            hub.repository = repository
            hub.files = {
                "data/archive.tar.gz": archive,
                "data/SHA256SUMS": f"{digest}  archive.tar.gz\n{'0' * 64} *other\n".encode(),
            }

        return put

    def test_archives_of_the_authors(self, offer, said, data):
        for repository, name, images in (
            ("pangwei/wilds-camelyon17", "WILDSCamelyon", 35),
            ("pangwei/wilds-fmow", "WILDSFMoW", 68),
        ):
            offer(repository, name)
            assert f"{name}: {images} images" in said(name)
            assert content_of(data / DATASETS[name].info.folder) == COPIES[name]()
            assert verify_dataset(name, data).ok

    def test_a_wrong_sum_stops_everything(self, offer, said, data):
        offer("pangwei/wilds-fmow", "WILDSFMoW", digest="0" * 64)
        wrong = r"archive\.tar\.gz has the SHA256 checksum \w{64}, expected 0{64}: remove it"
        with pytest.raises(UserError, match=wrong):
            said("WILDSFMoW")
        assert visible(data) == []
        assert "68 images" in said("WILDSFMoW", accept_checksum=True)

    def test_parquet_files_become_the_published_folder(self, hub, said, data):
        hub.repository, hub.files = "wltjr1007/Camelyon17-WILDS", camelyon_parquet()
        text = said("WILDSCamelyon")
        assert "Hub pangwei/wilds-camelyon17 failed: " in text
        published = COPIES["WILDSCamelyon"]()
        found = content_of(data / "camelyon17_v1.0")
        assert set(published) - set(found) == {"RELEASE_v1.0.txt"}
        assert {name for name in found if found[name] != published[name]} == {"metadata.csv"}
        root = data.parent / "published"
        write_copy("WILDSCamelyon", root)
        mine, other = (DATASETS["WILDSCamelyon"](str(each), [0], {}) for each in (data, root))
        for domain, expected in zip(mine, other, strict=True):  # the order, too: splits follow it
            assert list(domain.labels) == list(expected.labels)
            assert [file.name for file in domain.files] == [file.name for file in expected.files]
        report = verify_dataset("WILDSCamelyon", data)
        assert (report.ok, report.edition) == (True, "published")

    def test_parquet_files_that_are_not_the_dataset(self, said, tmp_path):
        for change, message in (
            (lambda table: table.drop_columns("x_coord"), "no column 'x_coord': its columns are"),
            (lambda table: table.slice(1), "domain 'hospital_4' has 8 images, published 9"),
            (
                lambda table: table.set_column(0, "patient", [["A"] * len(table)]),
                "row 0 of the Parquet files: expected a number in each of the columns image_id",
            ),
        ):
            write(camelyon_parquet(change), tmp_path / "mine")
            with pytest.raises(UserError, match=message):
                said("WILDSCamelyon", tmp_path / "mine")


def camelyon_parquet(change=lambda table: table):
    """The small Camelyon17 in three shards, in the columns of the mirror; the last row first."""
    published = COPIES["WILDSCamelyon"]()
    rows = list(csv.DictReader(io.StringIO(published["metadata.csv"].decode())))[::-1]
    columns = {name: [int(row[name]) for row in rows] for name in ("patient", "node", "slide")}
    columns |= {name: [int(row[name]) for row in rows] for name in ("x_coord", "y_coord", "center")}
    columns |= {"label": [int(row["tumor"]) for row in rows]}
    columns |= {"image_id": [int(row[""]) for row in rows]}
    scans = [f"patient_{row['patient']}_node_{row['node']}" for row in rows]
    names = [f"{s}_x_{r['x_coord']}_y_{r['y_coord']}.png" for s, r in zip(scans, rows, strict=True)]
    columns["image"] = [
        {"bytes": published[f"patches/{scan}/patch_{name}"], "path": None}
        for scan, name in zip(scans, names, strict=True)
    ]
    table, made = change(pyarrow.table(columns)), {}
    for part, start in {"train": 0, "validation": 12, "test": 24}.items():
        stream = io.BytesIO()
        pyarrow.parquet.write_table(table.slice(start, 12), stream)
        made[f"data/{part}-00000-of-00001.parquet"] = stream.getvalue()
    return made
