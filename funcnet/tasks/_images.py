"""What the tasks that classify images share: moving images about, and reading them from a file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from funcnet import train
from funcnet.errors import FileFormatError, ShapeError, ValueRangeError, describe
from funcnet.nets import convnet
from funcnet.tasks._task import Prediction, Saved

__all__ = ["classify", "predict", "read", "shifted"]


def shifted(key: PRNGKeyArray, images: Shaped[Array, "n h w c"], by: int) -> Shaped[Array, "n h w c"]:
    """Each image moved by up to `by` pixels along both axes, at random; what enters is 0."""
    padded = jnp.pad(images, ((0, 0), (by, by), (by, by), (0, 0)))
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * by + 1, jnp.int32)

    def cut(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], jnp.int32(0)), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


def classify(
    params: dict, images: Float[np.ndarray, "n h w c"], config: convnet.Config
) -> Float[np.ndarray, "n classes"]:
    """Probabilities of the classes."""
    compiled = jax.jit(lambda params, x: jax.nn.softmax(convnet.apply(params, x, config)))
    parts = [np.asarray(compiled(params, part)) for part in train.in_order(images, 500)]
    return np.concatenate(parts)


def predict(saved: Saved, path: Path, classes: tuple[str, ...], maximum: int) -> Prediction:
    """The most probable class of each image in a file, and the probabilities of all.

    Args:
        saved: a trained model.
        path: see `read`.
        classes: their names.
        maximum: the brightest value in the data set's own units.

    Raises:
        FileFormatError, ShapeError, ValueRangeError, OSError: from `read`.
    """
    probabilities = classify(saved.params, read(path, saved.config.image, maximum), saved.config)
    rows = [
        (str(i), classes[p.argmax()], f"{p.max():.1%}", *(f"{value:.3f}" for value in p))
        for i, p in enumerate(probabilities)
    ]
    return Prediction(("image", "class", "probability", *classes), rows)


def read(path: Path, image: tuple[int, int, int], maximum: int) -> Float[np.ndarray, "n h w c"]:
    """Grey images from a file, light on dark ground, scaled to [0, 1].

    Args:
        path: a .png, or an array in a .npy file: [h, w], [n, h, w] or [n, h, w, 1].
        image: the model's (h, w, 1); nothing is resized.
        maximum: of whole numbers, and of floats if one is above 1; else floats run from 0 to 1.

    Raises:
        FileFormatError: the file is damaged or of another kind.
        ShapeError: images of another size.
        ValueRangeError: a value is negative, above the maximum, or not a number; no image at all.
        OSError: the file cannot be read.
    """
    if path.suffix not in (".npy", ".png"):
        raise FileFormatError(
            f"{path}: images come from a .npy or a .png file.",
            path=str(path),
            expected="a name that ends in .npy or .png",
            actual=path.name,
        )
    images = _read_npy(path) if path.suffix == ".npy" else _read_png(path, image)
    if images.shape == image or images.shape == image[:2]:
        images = images[None]
    if images.shape[1:] == image[:2]:
        images = images[..., None]
    if images.shape[1:] != image:
        h, w, _ = image
        raise ShapeError(
            f"{path}: the images do not have the size that the model takes.",
            path=str(path),
            expected=f"[{h}, {w}] or [n, {h}, {w}]",
            actual=describe(images),
        )
    if not len(images):
        raise ValueRangeError(f"{path}: there is no image.", path=str(path), actual=describe(images))
    top = maximum if images.dtype.kind in "iu" or images.max() > 1 else 1
    if not (images.min() >= 0 and images.max() <= top):  # a NaN fails, too
        raise ValueRangeError(
            f"{path}: a value is out of range.",
            path=str(path),
            expected=f"0 to {top}",
            actual=f"{images.min()} to {images.max()}",
        )
    return (images / top).astype(np.float32)


@contextlib.contextmanager
def _decoding(path: Path, otherwise: str) -> Iterator[None]:
    """Whatever a decoder raises says that the file is damaged; what the system says of a file is kept."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise FileFormatError(f"{path}: this is {otherwise}: {reason}.", path=str(path)) from error


def _read_npy(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        is_npy = file.read(6) == b"\x93NUMPY"
    if not is_npy:
        raise FileFormatError(f"{path}: this is no .npy file of numbers.", path=str(path))
    with _decoding(path, "no .npy file of numbers"):
        # Mapped, an array that is longer than its file is refused before memory is taken for it.
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(images, np.ndarray) or images.dtype.kind not in "iuf":
        raise FileFormatError(
            f"{path}: these are no grey values.",
            path=str(path),
            expected="an array of integers or floats",
            actual=describe(images),
        )
    return np.array(images)


def _read_png(path: Path, size: tuple[int, int, int]) -> np.ndarray:
    import PIL.Image
    from matplotlib.image import imread

    with _decoding(path, "no PNG file, or a damaged one"), PIL.Image.open(path, formats=("PNG",)) as picture:
        (w, h), frames = picture.size, getattr(picture, "n_frames", 1)
        picture.verify()  # to its end
    if (h, w) != size[:2]:  # before it is unpacked: a small file may hold a huge picture
        raise ShapeError(
            f"{path}: the picture does not have the size that the model takes.",
            path=str(path),
            expected=f"{size[1]} × {size[0]} pixels",
            actual=f"{w} × {h} pixels",
        )
    if frames > 1:
        raise FileFormatError(
            f"{path}: the picture is animated.",
            path=str(path),
            expected="one picture",
            actual=f"{frames} frames",
        )
    with _decoding(path, "a damaged PNG file"):
        image = imread(path)  # whole numbers come as floats from 0 to 1
    if image.ndim == 3 and image.shape[-1] == 4 and (image[..., 3] == 1).all():
        image = image[..., :3]
    if image.ndim == 3 and image.shape[-1] == 3 and (image == image[..., :1]).all():
        image = image[..., 0]
    if image.ndim != 2:
        raise ShapeError(
            f"{path}: the picture has colours or is transparent.",
            path=str(path),
            expected="a grey picture",
            actual=describe(image),
        )
    return image
