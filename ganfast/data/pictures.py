"""One picture of any kind to uint8 (C, size, size): decode, centre square, antialiased resize."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ganfast.data.files import PictureFiles, what_is
from ganfast.data.source import Prepared, Wanted
from ganfast.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow opens some others by programs that it finds, as EPS
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
VERSION = 1  # of the policy in this file; packs made under another one are not reused


def open_picture(data: bytes, name: str) -> "Image":
    """Read a picture's header.

    Raises:
        InputError: not a picture, or too large to be an honest one.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
        if limit is None or pixels <= limit:
            return image
        reason = f"has {pixels:,} pixels, the limit is {limit:,}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error)
    except Exception as error:  # the parsers of Pillow's plug-ins raise errors of many kinds
        # Pillow's message for an unknown kind names an object in memory and no reason
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise InputError(
            f"{name} cannot be read as a picture{why}: it is {what_is(data[:64])}"
        ) from error
    raise InputError(f"{name} is refused as a decompression bomb: {reason}; shrink it")


def is_grey(image: "Image") -> bool:
    """Judged by the file's mode alone, so that no pixel need be decoded."""
    return image.mode in ("1", "L", "LA", "I") or image.mode.startswith("I;16")


def decode(data: bytes, name: str) -> "Image":
    """A picture upright, on white where it is transparent, in mode L or RGB. Raises InputError."""
    from PIL import Image, ImageOps

    image = open_picture(data, name)
    grey = is_grey(image)
    try:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "I" or image.mode.startswith("I;16"):
            return _from_16_bits(image, name)
        if image.mode == "F":
            raise InputError(
                f"{name} holds floating-point pixels, which have no known range: "
                "save it with 8 bits"
            )
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return _in_mode(image, "L" if grey else "RGB")
    except InputError:
        raise
    except Exception as error:  # truncated or corrupt: plug-ins raise errors of many kinds
        raise InputError(f"{name} is damaged: {error}") from error


def _in_mode(image: "Image", mode: str) -> "Image":
    image.load()  # convert() does so; a truncated file has to fail here too
    # convert() would copy a picture that has the mode already
    return image if image.mode == mode else image.convert(mode)


def _from_16_bits(image: "Image", name: str) -> "Image":
    """Pillow would clip 16-bit grey at 255 instead of scaling it."""
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise InputError(
            f"{name} has grey values from {values.min()} to {values.max()}: 0 to 65535 was expected"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def centre_square(width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest centred square; an odd margin is larger behind."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def prepare(image: "Image", size: int, channels: int) -> np.ndarray:
    """Centre square, colour conversion, resize: uint8 (channels, size, size).

    The square is cut before the resize, so that nothing outside of it bleeds in.
    """
    from PIL.Image import Resampling

    image = _in_mode(image.crop(centre_square(*image.size)), "L" if channels == 1 else "RGB")
    if image.width != size:
        shrinks = size < image.width
        image = image.resize((size, size), Resampling.LANCZOS if shrinks else Resampling.BICUBIC)
    pixels = np.asarray(image).reshape(size, size, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def reader(
    files: PictureFiles, names: Sequence[str], size: int, channels: int
) -> Callable[[int, int], np.ndarray]:
    """What reads and prepares pictures start .. stop of the names, as of `Selection.read`."""

    def read(start: int, stop: int) -> np.ndarray:
        images = (decode(files.read(name), f"{name} in {files.path}") for name in names[start:stop])
        return np.stack([prepare(image, size, channels) for image in images])

    return read


def prepare_array(pictures: np.ndarray, size: int, channels: int) -> np.ndarray:
    """`prepare` for uint8 (N, H, W, C): (N, channels, size, size); a copy where nothing changes."""
    if pictures.shape[1:] == (size, size, channels):
        return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    from PIL import Image

    flat = pictures[..., 0] if pictures.shape[3] == 1 else pictures
    return np.stack([prepare(Image.fromarray(picture), size, channels) for picture in flat])


def prepared_array(
    pictures: np.ndarray, own: str, wanted: Wanted, low: int | None = None
) -> Prepared:
    """What `Recognised._prepared` gives for pictures (N, H, W, C): uint8, or floats from `low`
    to 1."""
    if wanted.transpose:
        pictures, own = pictures.transpose(0, 2, 1, 3), f"{own}, rows as columns"

    def read(start: int, stop: int) -> np.ndarray:
        batch = pictures[start:stop]
        if low is not None:
            greys = (batch.astype(np.float64) - low) * (255 / (1 - low))
            batch = np.rint(greys).clip(0, 255).astype(np.uint8)
        return prepare_array(batch, wanted.size, wanted.channels)

    unchanged = pictures.shape[1:] == (wanted.size, wanted.size, wanted.channels)
    said = preparation(own, wanted.size, wanted.channels, unchanged)
    return wanted.channels, said, read


def preparation(own: str, size: int, channels: int, unchanged: bool = False) -> str:
    """The policy above in words; `own` says what the pictures are before it."""
    if unchanged:
        return f"{own}, as stored"
    resize = f"{size}x{size} by Lanczos (down) or bicubic (up)"
    return f"{own}; centre square; {resize}; {colour(channels)}"


def colour(channels: int) -> str:
    return {0: "grey or colour", 1: "grey", 3: "colour"}[channels]
