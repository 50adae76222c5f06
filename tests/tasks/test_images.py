"""Images: moved about for training, and read from files of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from matplotlib.image import imsave

from funcnet.errors import FileFormatError, FuncnetError, ShapeError
from funcnet.nets import convnet
from funcnet.tasks import _images
from funcnet.tasks._task import Saved

IMAGE = (8, 8, 1)
GREY = np.arange(64, dtype=np.float64).reshape(8, 8) / 63


def saved(tmp_path, array, name="images.npy"):
    np.save(tmp_path / name, array)
    return tmp_path / name


def read(path, maximum=16):
    return _images.read(path, IMAGE, maximum)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (1, 8, 8, 1), (8, 8, 1)])
def test_one_image(tmp_path, shape):
    images = read(saved(tmp_path, GREY.reshape(shape)))
    assert images.shape == (1, 8, 8, 1)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images[0, ..., 0], GREY, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_the_units_of_the_data_set(tmp_path, dtype):
    array = np.arange(3 * 64).reshape(3, 8, 8) % 17
    np.testing.assert_allclose(read(saved(tmp_path, array.astype(dtype)))[..., 0], array / 16, atol=1e-7)


def test_whole_numbers_are_never_taken_for_fractions(tmp_path):
    np.testing.assert_allclose(read(saved(tmp_path, np.ones((8, 8), np.uint8))), 1 / 16)
    np.testing.assert_allclose(read(saved(tmp_path, np.ones((8, 8), np.float32))), 1)


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
def test_a_grey_png(tmp_path, kind):
    path = tmp_path / "image.png"
    layers = {"grey": 1, "rgb": 3, "rgba": 4}[kind]
    if kind == "grey":
        imsave(path, GREY, cmap="gray", vmin=0, vmax=1)
    else:
        pixels = np.repeat(GREY[..., None], layers, -1)
        pixels[..., 3:] = 1
        imsave(path, pixels)
    np.testing.assert_allclose(read(path)[0, ..., 0], GREY, atol=1 / 255)


def test_a_png_that_is_damaged_is_refused_by_name(tmp_path):
    path = tmp_path / "image.png"
    PIL.Image.fromarray((255 * GREY).astype(np.uint8)).save(path)
    content = path.read_bytes()
    cut = [content[:n] for n in range(0, len(content) - 8, 5)]
    flipped = [
        content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :] for n in range(8, len(content) - 12, 5)
    ]
    for damaged in cut + flipped:
        path.write_bytes(damaged)
        with pytest.raises((FileFormatError, ShapeError), match=r"image\.png: "):
            read(path)


def test_a_png_that_is_no_single_picture_of_the_size(tmp_path):
    grey = PIL.Image.fromarray((255 * GREY).astype(np.uint8))
    grey.save(tmp_path / "animated.png", save_all=True, append_images=[PIL.ImageOps.invert(grey)])
    with pytest.raises(FileFormatError, match=r"animated.png: the picture is animated(.|\n)*2 frames"):
        read(tmp_path / "animated.png")
    grey.resize((9, 8)).save(tmp_path / "wide.png")
    with pytest.raises(ShapeError, match=r"wide.png(.|\n)*8 × 8 pixels(.|\n)*9 × 8 pixels"):
        read(tmp_path / "wide.png")
    grey.convert("CMYK").save(tmp_path / "cmyk.tiff")
    (tmp_path / "cmyk.tiff").rename(tmp_path / "cmyk.png")
    with pytest.raises(FileFormatError, match=r"cmyk\.png: this is no PNG file"):
        read(tmp_path / "cmyk.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.png"):
        read(tmp_path / "folder.png")


def test_sixteen_bits(tmp_path):
    path = tmp_path / "image.png"
    PIL.Image.fromarray((65535 * GREY).astype(np.uint16)).save(path)
    np.testing.assert_allclose(read(path)[0, ..., 0], GREY, atol=1 / 65535)


def test_what_cannot_be_read(tmp_path):
    coloured, clear = np.repeat(GREY[..., None], 4, -1), np.repeat(GREY[..., None], 4, -1)
    coloured[..., 0], coloured[..., 3] = 0, 1
    imsave(tmp_path / "coloured.png", coloured)
    imsave(tmp_path / "clear.png", clear)
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (tmp_path / "text.png").write_text("a picture")
    (tmp_path / "no.npy").write_bytes(b"\x93NUMPY" + bytes(30))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "image.jpg").write_bytes(b"")
    for path in tmp_path.iterdir():
        with pytest.raises(FuncnetError, match=path.name):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.npy")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((28, 28)), "do not have the size"),
        (np.zeros((8, 8, 3)), "do not have the size"),
        (np.zeros(64), "do not have the size"),
        (np.zeros((2, 3, 8, 8)), "do not have the size"),
        (np.zeros((0, 8, 8)), "no image"),
        (np.full((8, 8), -1), "out of range"),
        (np.full((8, 8), 17), "out of range"),
        (np.full((8, 8), 16.5), "out of range"),
        (np.full((8, 8), np.nan), "out of range"),
        (np.full((8, 8), np.inf), "out of range"),
        (np.full((8, 8), "x"), "no grey values"),
        (np.full((8, 8), 1j), "no grey values"),
        (np.full((8, 8), None), "no .npy file of numbers"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, message):
    with pytest.raises(FuncnetError, match=message):
        read(saved(tmp_path, array))


def test_the_text_of_an_error(tmp_path):
    path = saved(tmp_path, np.zeros((28, 28)))
    with pytest.raises(FuncnetError) as raised:
        read(path)
    assert str(raised.value) == (
        f"{path}: the images do not have the size that the model takes.\n"
        "  expected  [8, 8] or [n, 8, 8]\n"
        "  got       float64[28, 28]"
    )


def test_a_header_that_promises_more_than_there_is(tmp_path):
    path = saved(tmp_path, np.zeros((10, 8, 8), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(10, 8, 8)", b"(1000000000000, 8, 8)", 1).replace(b" " * 11, b"", 1))
    with pytest.raises(FileFormatError):
        read(path)


def test_an_image_is_moved_by_whole_pixels():
    images = jnp.asarray(np.random.default_rng(0).random((40, 5, 4, 2)) + 1)
    moved = _images.shifted(jax.random.key(0), images, by=1)
    assert moved.dtype == images.dtype
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [[padded[i, r : r + 5, c : c + 4] for r in range(3) for c in range(3)] for i in range(40)]
    where = [
        next(p for p, place in enumerate(places[i]) if np.array_equal(place, moved[i])) for i in range(40)
    ]
    assert set(where) == set(range(9)), "every direction comes, and staying"
    np.testing.assert_array_equal(_images.shifted(jax.random.key(0), images, by=0), images)


def test_a_prediction_has_a_row_for_each_image(tmp_path):
    config = convnet.Config(IMAGE, channels=(2,), hidden=3)
    params = convnet.init(jax.random.key(0), config)
    images = np.random.default_rng(0).integers(0, 17, (600, 8, 8))
    path = saved(tmp_path, images)
    prediction = _images.predict(Saved("digits", config, params, {}), path, tuple("abcdefghij"), 16)
    logits = convnet.apply(params, jnp.asarray(images[..., None] / 16), config)
    expected = np.asarray(jax.nn.softmax(logits))
    assert prediction.columns == ("image", "class", "probability", *"abcdefghij")
    assert [row[0] for row in prediction.rows] == [str(i) for i in range(600)]
    assert [row[1] for row in prediction.rows] == ["abcdefghij"[i] for i in expected.argmax(-1)]
    assert [float(x) for x in prediction.rows[7][3:]] == pytest.approx(expected[7], abs=6e-4)
