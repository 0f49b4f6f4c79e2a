"""Files that are moved into place, and what nothing may take the place of."""

import os
import sys
import threading

import pytest

from domainbed.core.files import as_json_values, write_text


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "text")
    reader.join(10)
    assert read == ["text"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(os.name != "posix" or not os.path.exists("/dev/stdout"), reason="needs /dev")
def test_the_systems_name_of_the_output_stays_a_link(tmp_path):
    before = os.readlink("/dev/stdout")
    script = (
        "import pathlib, domainbed.core.files as f; f.write_text(pathlib.Path('/dev/stdout'), 'x')"
    )
    assert os.system(f'{sys.executable} -c "{script}" > {tmp_path / "out"}') == 0
    assert (tmp_path / "out").read_text() == "x"
    assert os.readlink("/dev/stdout") == before
    assert os.listdir(tmp_path) == ["out"]


def test_what_json_does_not_have_is_null():
    inf, nan = float("inf"), float("nan")
    values = {"loss": nan, "norms": (inf, -inf, 1.5), "step": 3}
    assert as_json_values(values) == {"loss": None, "norms": [None, None, 1.5], "step": 3}
