from __future__ import annotations

import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from robustcli.data import images
from robustcli.data.images import Decoder, decode_all, planes
from robustcli.errors import DataError


def decode(path: Path, **options) -> np.ndarray:
    return Decoder(str(path.parent), **options)(path.name)


def refused(path: Path, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        decode(path, **options)
    error = caught.value
    assert str(path) in error.line() and error.hint and error.exit_code == 3
    return error


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
def test_formats(tmp_path: Path, picture, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture(1).save(path)
    got = decode(path)
    assert got.shape == (8, 8, 3) and got.dtype == np.uint8
    with Image.open(path) as stored:
        assert np.array_equal(got, np.asarray(stored.convert("RGB")))


def test_grey_stays_grey(tmp_path: Path, picture) -> None:
    picture(1, mode="L").save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), np.asarray(picture(1, mode="L")))
    picture(1, mode="LA").save(tmp_path / "b.png")
    assert np.array_equal(decode(tmp_path / "b.png"), np.asarray(picture(1, mode="L")))
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "c.png")
    assert np.array_equal(decode(tmp_path / "c.png"), np.eye(8, dtype=np.uint8) * 255)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257], [65535, 200, 300]], dtype=np.uint16)
    for suffix in ("png", "tif"):
        path = tmp_path / f"deep.{suffix}"
        Image.fromarray(values).save(path)
        assert decode(path).tolist() == [[0, 1, 128], [255, 1, 1]], suffix


def test_sixteen_bit_pgm(tmp_path: Path) -> None:
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + struct.pack(">2H", 65535, 257))
    assert decode(path).tolist() == [[255, 1]]


def test_sixteen_bit_rgb_keeps_the_high_byte(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">3H", 0x1234, 0xFFFF, 0x0080)
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )
    assert decode(path).tolist() == [[[0x12, 0xFF, 0x00]]]


def test_cmyk_has_the_right_colours(tmp_path: Path) -> None:
    colours = np.repeat(np.array([[[220, 30, 30], [30, 200, 60]]], dtype=np.uint8), 8, axis=0).repeat(
        8, axis=1
    )
    path = tmp_path / "a.jpg"
    Image.fromarray(colours).convert("CMYK").save(path, quality=95)
    assert np.abs(decode(path).astype(int) - colours).max() < 12


def test_palette_with_alpha_gives_the_palette_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert decode(tmp_path / "a.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_alpha_is_dropped(tmp_path: Path, picture) -> None:
    rgba = picture(3).copy()
    rgba.putalpha(40)
    rgba.save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), np.asarray(picture(3)))


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, -1), (8, 1)])
def test_exif_orientation(tmp_path: Path, picture, orientation: int, turn: int) -> None:
    stored = picture(5, (6, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png"), np.rot90(np.asarray(stored), turn))


def test_orientation_comes_before_the_crop(tmp_path: Path) -> None:
    wide = np.zeros((4, 8, 3), dtype=np.uint8)
    wide[:, 2:6] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "a.png", exif=exif)
    assert (decode(tmp_path / "a.png", size=4) == 255).all()


def test_size_resizes_the_short_side_and_crops_the_centre(tmp_path: Path, picture) -> None:
    stored = picture(5, (20, 10))
    stored.save(tmp_path / "a.png")
    expected = stored.resize((10, 5), Image.Resampling.BILINEAR).crop((2, 0, 7, 5))
    assert np.array_equal(decode(tmp_path / "a.png", size=5), np.asarray(expected))


def test_ratio_is_imagenets_evaluation(tmp_path: Path, picture) -> None:
    stored = picture(5, (20, 16))
    stored.save(tmp_path / "a.png")
    expected = stored.resize((10, 8), Image.Resampling.BILINEAR).crop((1, 0, 8, 7))
    assert np.array_equal(decode(tmp_path / "a.png", size=7, ratio=8 / 7), np.asarray(expected))


@pytest.mark.parametrize("size", [1, 3, 8, 17])
@pytest.mark.parametrize("side", [(1, 1), (1, 50), (7, 3)])
def test_any_side_gives_the_size(tmp_path: Path, picture, size: int, side: tuple[int, int]) -> None:
    picture(1, side).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", size=size).shape == (size, size, 3)


def jpeg_bytes(picture) -> bytes:
    import io

    buffer = io.BytesIO()
    picture(1, 32).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("zero.jpg", b"", "not a readable image (0 bytes)"),
        ("text.jpg", b"hello, I am no image", "not a readable image"),
        ("code.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
    ],
)
def test_not_an_image(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert text in refused(tmp_path / name).what


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif"])
def test_truncated(tmp_path: Path, picture, share: float, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    picture(1, 32).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert refused(path).code == "E-IMAGE"


def test_flipped_bit_in_png_is_seen(tmp_path: Path, picture) -> None:
    path = tmp_path / "a.png"
    picture(1, 32).save(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert refused(path).code == "E-IMAGE"


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, picture, data: st.DataObject) -> None:
    """Pixels or a DataError, for every mutation of every format."""
    path = tmp_path / f"a.{data.draw(st.sampled_from(['png', 'jpg', 'gif', 'tif', 'webp', 'bmp', 'ppm']))}"
    picture(1, 6).save(path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        assert decode(path, size=4).dtype == np.uint8
    except DataError as error:
        assert str(path) in error.where


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)  # 50 KB on disk, 400 million pixels: Pillow itself refuses
    assert path.stat().st_size < 100_000
    assert "bomb" in refused(path).what
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 9_999)
    assert "100x100 pixels is larger than 9999" in refused(path).what


def test_float_images_have_no_known_scale(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    assert "float pixels" in refused(tmp_path / "a.tif").what
    Image.fromarray(np.zeros((2, 2), dtype=np.int32)).save(tmp_path / "b.tif")
    assert "32-bit integer" in refused(tmp_path / "b.tif").what


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert "not a regular file" in refused(tmp_path / "a.png").what


def test_folder_socket_and_missing(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert "not a regular file" in refused(tmp_path / "a.png").what
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tmp_path)  # socket paths are short
        try:
            listener.bind("s.png")
        finally:
            os.chdir(here)
        refused(tmp_path / "s.png")
    assert "No such file" in refused(tmp_path / "none.png").what


def test_links(tmp_path: Path, picture) -> None:
    root = tmp_path / "root"
    root.mkdir()
    picture(1).save(root / "real.png")
    picture(1).save(tmp_path / "outside.png")
    (root / "good.png").symlink_to(root / "real.png")
    (root / "broken.png").symlink_to(root / "none.png")
    (root / "leaves.png").symlink_to(tmp_path / "outside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    assert decode(root / "good.png").shape == (8, 8, 3)
    assert "broken link" in refused(root / "broken.png").what
    assert "link leaves the data folder" in refused(root / "leaves.png").what
    assert "link" in refused(root / "loop.png").what


def test_planes() -> None:
    grey, colour = np.full((2, 2), 7, np.uint8), np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert planes(grey, (3, 2, 2), "a").tolist() == [[[7, 7], [7, 7]]] * 3
    assert np.array_equal(planes(colour, (3, 2, 2), "a"), colour.transpose(2, 0, 1))
    with pytest.raises(DataError, match="expected 1x2x2, got 3x2x2"):
        planes(colour, (1, 2, 2), "a")
    with pytest.raises(DataError, match=r"expected 3x4x4, got 1x2x2; a; data\.size=4"):
        planes(grey, (3, 4, 4), "a")


@pytest.mark.parametrize("threads", [1, 3])
def test_decode_all(tmp_path: Path, picture, threads: int) -> None:
    for k in range(70):
        picture(k, mode="L" if k % 2 else "RGB").save(tmp_path / f"{k:02d}.png")
    (tmp_path / "05.png").write_bytes(b"")
    (tmp_path / "64.png").write_bytes(b"")
    paths = [f"{k:02d}.png" for k in range(70)]
    pixels, faults = decode_all(paths, Decoder(str(tmp_path)), threads)
    assert pixels.shape == (70, 3, 8, 8) and list(faults) == [5, 64]
    assert np.array_equal(pixels[4].numpy(), np.asarray(picture(4)).transpose(2, 0, 1))
    assert np.array_equal(pixels[7].numpy(), np.stack([np.asarray(picture(7, mode="L"))] * 3))
    assert not pixels[5].any()


def test_all_grey_is_one_channel(tmp_path: Path, picture) -> None:
    for k in range(3):
        picture(k, mode="L").save(tmp_path / f"{k}.png")
    pixels, _ = decode_all(["0.png", "1.png", "2.png"], Decoder(str(tmp_path)), 1)
    assert pixels.shape == (3, 1, 8, 8) and pixels.is_contiguous()
