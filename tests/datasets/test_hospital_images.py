"""Images as hospitals have them: DICOM, 16 bits, palettes, EXIF orientation, other sizes."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed.cli import main
from domainbed.config.run_fields import FeatureSource
from domainbed.core.image_files import USUAL, Decoding, is_image, is_turned, rgb_pixels
from domainbed.datasets import domains_of, load_dataset
from domainbed.datasets.domain import Draw
from domainbed.datasets.images.dataset_files import read_image
from domainbed.datasets.images.transforms import evaluation_transform
from domainbed.datasets.listing import data_facts
from domainbed.errors import UserError
from domainbed.spec import RunSpec

HOUNSFIELD = np.array([[-1024, -160, -159, 40], [41, 100, 239, 3071]])


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def dicom(stored: np.ndarray, **facts: Any) -> bytes:
    """A file of 12 bits per value, rescaled by -1024, with a window of 400 around 40."""
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.SOPClassUID, file.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    file.Rows, file.Columns = stored.shape[:2]
    bits = 8 * stored.dtype.itemsize
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, min(12, bits), min(12, bits) - 1
    file.PixelRepresentation, file.SamplesPerPixel = 0, 1
    usual = {"PhotometricInterpretation": "MONOCHROME2", "RescaleSlope": 1}
    usual |= {"RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    for name, value in {**usual, **facts}.items():
        if value is not None:
            setattr(file, name, value)
    file.PixelData = stored.tobytes()
    stream = io.BytesIO()
    file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def greys(data: bytes, decoding: Decoding = USUAL) -> list[list[int]]:
    pixels, _ = rgb_pixels(data, decoding)
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


def standard(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """DICOM PS3.3, C.11.2.1.2.1, from 0 to 255."""
    return ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1) * 255


def test_dicom_is_rescaled_and_windowed_as_the_standard_says() -> None:
    stored = (HOUNSFIELD + 1024).astype(np.uint16)
    expected = standard(HOUNSFIELD, 40, 400)
    assert expected.min() == 0
    assert expected.max() == 255
    assert greys(dicom(stored)) == np.rint(expected).tolist()
    assert is_image("scan.DCM")
    several = dicom(stored, WindowCenter=[40, 300], WindowWidth=[400, 1500])
    assert greys(several) == greys(dicom(stored))
    inverted = greys(dicom(stored, PhotometricInterpretation="MONOCHROME1"))
    assert inverted == (255 - np.rint(expected)).tolist()
    steep = dicom(stored, RescaleSlope=2, RescaleIntercept=-1000)
    assert greys(steep) == np.rint(standard(2.0 * stored - 1000, 40, 400)).tolist()
    lung = Decoding(window=(-1024, 3071))
    assert greys(dicom(stored), lung) == np.rint((HOUNSFIELD + 1024) / 4095 * 255).tolist()
    none = dicom(stored, WindowCenter=None, WindowWidth=None)
    assert greys(none) == greys(none, lung)  # its lowest and highest value
    exact = greys(dicom(stored, VOILUTFunction="LINEAR_EXACT"))
    assert exact == np.rint(((HOUNSFIELD + 160) / 400).clip(0, 1) * 255).tolist()


def test_dicom_in_colour_and_of_several_frames() -> None:
    colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    of_rgb = dicom(
        colours, PhotometricInterpretation="RGB", SamplesPerPixel=3, PlanarConfiguration=0
    )
    pixels, mode = rgb_pixels(of_rgb)
    assert mode == "DICOM"
    assert (pixels == colours).all()
    frames = np.zeros((2, 2, 4), np.uint16)
    with pytest.raises(ValueError, match="it has 2 frames: save each in a file of its own"):
        rgb_pixels(dicom(frames, NumberOfFrames=2))


def test_without_pydicom_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "scan"
    file.write_bytes(b"\0" * 128 + b"DICM")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"scan cannot be read: DICOM needs pydicom: pip install "):
        read_image(file)


def test_grey_levels_of_16_bits() -> None:
    """All of 0 to 65535, whatever the format; a window where there are fewer."""
    values = np.array([[0, 128, 129], [4095, 32_768, 65_535]], np.uint16)
    expected = np.rint(values / 257).tolist()
    pgm = b"P5 3 2 65535\n" + values.astype(">u2").tobytes()
    for data in (*(encoded(Image.fromarray(values), form) for form in ("PNG", "TIFF")), pgm):
        assert greys(data) == expected
        assert greys(data, Decoding(window=(0, 4095)))[1] == [255, 255, 255]
    starts_white = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    assert greys(starts_white) == (255 - np.array(expected)).tolist()
    floats = encoded(Image.fromarray(values.astype(np.float32)), "TIFF")
    assert greys(floats, Decoding(window=(0, 65535))) == expected
    with pytest.raises(ValueError, match="set the hyper-parameter window"):
        rgb_pixels(floats)


@pytest.mark.filterwarnings("error")
def test_palettes_are_colours() -> None:
    colours = np.array([[[9, 99, 199], [1, 2, 3]], [[0, 255, 0], [9, 99, 199]]], np.uint8)
    image = Image.fromarray(colours).quantize(4)
    for options in ({}, {"transparency": b"\0\x80\xff"}, {"transparency": 1}):
        pixels, mode = rgb_pixels(encoded(image, **options))
        assert mode == "P"
        assert (pixels == colours).all()


def turned(size: tuple[int, int] = (3, 2)) -> tuple[np.ndarray, Image.Exif]:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    return np.arange(6, dtype=np.uint8).reshape(*size)[..., None].repeat(3, 2) * 40, exif


def test_exif_turns_where_it_is_asked_to() -> None:
    pixels, exif = turned()
    plain, marked = (encoded(Image.fromarray(pixels), **o) for o in ({}, {"exif": exif}))
    assert (rgb_pixels(marked)[0] == pixels).all()
    assert (rgb_pixels(marked, Decoding("exif"))[0] == np.rot90(pixels, -1)).all()
    assert (rgb_pixels(plain, Decoding("exif"))[0] == pixels).all()
    assert [is_turned(data) for data in (plain, marked, b"no exif")] == [False, True, False]
    jpeg = encoded(Image.fromarray(pixels), "JPEG", exif=exif)
    assert is_turned(jpeg)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two domains of two classes of two images of 48 × 40, one of them to be turned."""
    folder, (_, exif) = tmp_path / "pictures", turned()
    for number in range(8):
        place = folder / f"d{number // 4}" / f"c{number // 2 % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.RandomState(number).randint(0, 255, (40, 48, 3), np.uint8)
        options = {"exif": exif} if number == 5 else {}
        (place / f"{number}.png").write_bytes(encoded(Image.fromarray(pixels), **options))
    return folder


def loaded(folder: Path, **hparams: Any) -> Any:
    return load_dataset(f"folder:{folder}", str(folder.parent), [0], hparams, 0)


def test_every_way_to_read_images_has_size_and_orientation(pictures: Path) -> None:
    options = {"image_size": 64, "orientation": "exif", "packed_size": 80}
    dataset = loaded(pictures, **options)
    assert dataset.input_shape == (3, 64, 64)
    file = pictures / "d1" / "c0" / "5.png"
    upright = read_image(file, Decoding("exif"))
    assert upright.shape == (3, 48, 40)
    expected = evaluation_transform(upright, 64)
    assert (dataset[1][1][0] == expected).all()
    for fast in ({}, {"packed_format": "jpeg"}):
        packed = loaded(pictures, data_path="fast", **options, **fast)
        (domain,) = domains_of(packed)[1:]
        (x, _) = next(domain.batches([Draw(torch.arange(4))]))
        assert x.shape == (4, 3, 64, 64)
        assert (x[1] - expected).abs().mean() < 0.25
        assert (x[1] - evaluation_transform(read_image(file), 64)).abs().mean() > 0.3
        (x, _) = next(domain.batches([Draw(torch.arange(4), augment=True)]))
        assert x.shape == (4, 3, 64, 64)
    assert (dataset.datasets[1].read(1, augment=True)[0] != expected).any()
    with pytest.raises(UserError, match="packed_size is 256: expected 300 or more"):
        loaded(pictures, data_path="fast", image_size=300)


def test_features_are_of_the_size_that_is_asked_for(pictures: Path) -> None:
    source = FeatureSource(backbone="resnet18", weights="none")
    found = {}
    for hparams in ({}, {"image_size": 64}):
        name, root = f"folder:{pictures}", str(pictures.parent)
        dataset: Any = load_dataset(name, root, [0], hparams, 0, features=source)
        found[dataset.features_folder] = dataset.datasets[0].x
    usual, small = found.values()
    assert usual.shape == small.shape
    assert (usual - small).abs().max() > 1e-3


def test_they_are_in_the_identity_only_where_they_differ() -> None:
    plain = RunSpec.create("PACS", "ERM", [0])
    assert {"image_size", "orientation", "window"}.isdisjoint(plain.hparams)
    for hparams in ({"image_size": 64}, {"orientation": "exif"}, {"window": [0, 4095]}):
        for features in ({}, {"features": {"backbone": "resnet18"}}):
            usual = RunSpec.create("PACS", "ERM", [0], **features)
            other = RunSpec.create("PACS", "ERM", [0], hparams=hparams, **features)
            assert other.run_id != usual.run_id


def test_a_window_has_two_ends(pictures: Path) -> None:
    for window in ([4095], [2, 1], ["a", "b"]):
        with pytest.raises(UserError, match="expected two numbers, the value of black and a"):
            loaded(pictures, window=window)


def test_ignored_exif_is_named(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):  # also where all files have been seen before
        dataset = loaded(pictures)
        caplog.clear()
        facts = data_facts(dataset, domains_of(dataset), ["d0", "d1"], str(pictures.parent))
        (said,) = caplog.messages
        assert "the EXIF data of 1 images ask for turning, which is ignored" in said
        assert "5.png: the hyper-parameter orientation 'exif' turns them" in said
    caplog.clear()
    same = data_facts(dataset, domains_of(dataset), ["d0", "d1"], str(pictures.parent), False)
    assert same == facts
    assert not caplog.messages


def test_what_is_packed_beforehand_is_what_runs_read(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(pictures.parent)
    reading = ("--orientation", "exif", "--window", "0", "4095", "--size", "250")
    with pytest.raises(SystemExit) as exit:
        main(["data", "pack", f"folder:{pictures}", "--data_dir", root, *reading])
    assert exit.value.code == 0
    options = {"orientation": "exif", "window": [0, 4095], "packed_size": 250}
    pack = loaded(pictures, data_path="fast", **options).datasets[0].pack
    assert str(pack.folder) in capsys.readouterr().out
    usual = loaded(pictures, data_path="fast", packed_size=250).datasets[0].pack
    assert usual.folder != pack.folder
