"""Small datasets in the structure of their sources, and a server that behaves badly on demand."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

PACS_IMAGES = (9, 8, 7, 10)


def image_bytes(number, extension="jpg", mode="RGB"):
    """A small image that no other number has."""
    pixels = np.random.RandomState(number).randint(0, 256, (6, 5, 3), dtype=np.uint8)
    stream = io.BytesIO()
    kind = {"jpg": "JPEG", "png": "PNG"}[extension.lower()]
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def tree_files(info, images, start=0, extension="jpg"):
    """`domain/class/file` to bytes: images[i] in domain i, dealt out to the classes."""
    classes = info.classes or [f"class_{k}" for k in range(info.num_classes)]
    files = {}
    for domain, number in zip(info.domains, images, strict=True):
        for k in range(number):
            label = classes[k % len(classes)]
            start += 1
            name = f"{domain}/{label}/pic_{k:03d}.{extension}"
            files[name] = image_bytes(start, extension)
    return files


def write(files, folder):
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return folder


def below(prefix, files):
    return {f"{prefix}/{name}": content for name, content in files.items()}


def write_zip(file, files):
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file


def write_tar(file, files):
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def content_of(folder):
    """Paths below `folder` to bytes, without hidden files."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in Path(folder).rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


def visible(folder):
    """What a user sees in a data folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def terra_files():
    """Annotation files and images; the numbers are those of TERRA_IMAGES.

    Image 1 has two kept categories and lies in each folder; 7 has a category, and 8 a location,
    that is not kept; 9 has no file.
    """
    categories = [{"id": k, "name": name} for k, name in enumerate(("bird", "cat", "deer"), 30)]
    where = {1: 38, 2: 38, 3: 43, 4: "46", 5: 100, 6: 100, 7: 38, 8: 33, 9: 46}
    labels = [(1, 30), (1, 31), (1, 30), (2, 31), (3, 30), (4, 31), (5, 30), (6, 31), (7, 32)]
    labels += [(8, 30), (9, 30)]
    files = {}
    for part, ids in zip(
        ("cis_test", "cis_val", "train", "trans_test", "trans_val"),
        ((1, 2), (3,), (4, 5, 7), (6, 8), (9,)),
        strict=True,
    ):
        images = [{"id": f"x{i}", "file_name": f"x{i}.jpg", "location": where[i]} for i in ids]
        notes = [
            {"id": f"{i}-{k}", "image_id": f"x{i}", "category_id": k} for i, k in labels if i in ids
        ]
        table = {"images": images, "annotations": notes, "categories": categories}
        files[f"eccv_18_annotation_files/{part}_annotations.json"] = json.dumps(table).encode()
    return files, {f"eccv_18_all_images_sm/x{i}.jpg": image_bytes(i) for i in range(1, 9)}


TERRA_IMAGES = (2, 3, 1, 1)  # locations 100, 38, 43, 46


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder with ranges; `server.cut` bytes are sent of the next answer, then none."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        file = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range") if server.ranges else None
        server.requests.append((file.name, wanted))
        if not file.is_file():
            return self.send_error(404)
        content = file.read_bytes()
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        body = content[first:]
        if server.cut is not None:
            body, self.close_connection = body[: server.cut], True
        with contextlib.suppress(OSError):
            self.wfile.write(body)
            self.wfile.flush()
            server.sent.append((file.name, first, len(body)))


@contextlib.contextmanager
def serving(folder):
    """A server on this machine: `url`, `requests`, `sent`, and the switches `cut` and `ranges`."""
    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.requests, server.sent, server.cut, server.ranges = [], [], None, True
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
