"""Pictures on disk and on sheets (host side).

The libraries that read, write and resample are imported when they are called for: they take longer
than all the rest of a command's help.

Images are `[H, W, 3]` float in [0, 1]. Their values are sRGB everywhere in jax3d: fields, renders
and critics all speak of colours as a screen shows them; only light is added up in linear values.
"""

import os
import subprocess
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8

from jax3d.files import whole

Host = np.ndarray | jax.Array
"""Arrays that NumPy can read."""


def to_uint8(rgb: Float[Host, "..."]) -> UInt8[np.ndarray, "..."]:
    """Round [0, 1] to 0..255; values outside are clipped, NaN becomes 0."""
    return np.round(np.clip(np.nan_to_num(np.asarray(rgb)), 0.0, 1.0) * 255.0).astype(np.uint8)


def read_image(path: str | os.PathLike) -> Float[np.ndarray, "H W 3"]:
    """Read a PNG or JPEG as float in [0, 1]; transparency is laid over white."""
    import imageio.v3 as iio

    try:
        rgba = iio.imread(path, plugin="pillow", mode="RGBA").astype(np.float32) / 255.0
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not an image that can be read ({error})") from error
    return rgba[..., :3] * rgba[..., 3:] + (1.0 - rgba[..., 3:])


def read_picture(path: str | os.PathLike, upright: bool = True) -> Float[np.ndarray, "H W 4"]:
    """Read a person's picture, of any kind and size that Pillow reads, with its coverage.

    Where it shall be `upright` it is turned as its EXIF says, else it stays as the camera's chip
    has it, which is what poses and lenses speak of; CMYK, palettes, 16 bits and the first frame of
    an animation become sRGB in [0, 1]. A picture of more than `MOST_SEEN` pixels a side is reduced
    to that.

    Raises:
      ValueError: It is no picture, a damaged one, or one of more than `MOST_PIXELS`.
      OSError: It cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns from half of what it refuses; here one limit is told.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                width, height = file.size
                if width * height > MOST_PIXELS:
                    raise ValueError(
                        f"{path} has {width} x {height} pixels; at most {MOST_PIXELS:,} are read"
                    )
                file.draft("RGB", (MOST_SEEN, MOST_SEEN))
                turned = ImageOps.exif_transpose(file) if upright else file
                picture = _eight_bits(turned).convert("RGBA")
    except (UnidentifiedImageError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that can be read ({error})") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged: {error}") from error
    picture.thumbnail((MOST_SEEN, MOST_SEEN))
    return np.asarray(picture, np.float32) / 255.0


MOST_PIXELS = 100_000_000
"""Of a picture that is read; as RGBA it takes four bytes each."""
MOST_SEEN = 1024
"""Side to which larger pictures are reduced: no network here looks at more."""


def _eight_bits(picture):
    """Pictures of 16 bits and of floats, which Pillow would cut off at 255."""
    from PIL import Image

    if not picture.mode.startswith(("I", "F")):
        return picture
    levels = np.asarray(picture, np.float64)
    top = 65535.0 if picture.mode.startswith("I") else max(float(levels.max()), 1e-9)
    return Image.fromarray(np.round(255.0 * np.clip(levels / top, 0.0, 1.0)).astype(np.uint8))


def cut_out(picture: Float[Host, "H W c"], tolerance: float = 0.06) -> Float[np.ndarray, "H W 4"]:
    """The object of a picture: straight sRGB and coverage.

    Coverage is taken where the picture has some. Else the ground must be plain: it is what differs
    from the border's colour by less than `tolerance` in every channel and hangs together with the
    border.

    Raises:
      ValueError: The border is not of one colour, or nothing stands before it.
    """
    from scipy import ndimage

    picture = np.asarray(picture, np.float32)
    if picture.shape[-1] == 4 and picture[..., 3].min() < 0.99:
        if picture[..., 3].max() < 0.1:
            raise ValueError("nothing is in the picture: all of it is transparent")
        return picture
    rgb = picture[..., :3]
    edge = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    ground = np.median(edge, axis=0)
    plain = np.mean(np.abs(edge - ground).max(-1) < tolerance)
    if plain < 0.7:
        raise ValueError(
            f"its ground is not plain (of its border {plain:.0%} has one colour): cut the object "
            "out and save it with transparency, as a PNG"
        )
    near = np.abs(rgb - ground).max(-1) < tolerance
    regions, _ = ndimage.label(near)
    border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    behind = np.isin(regions, np.unique(border[border > 0]))
    object_ = ndimage.binary_opening(~behind) if min(behind.shape) > 32 else ~behind
    if not object_.any():
        raise ValueError("nothing is in the picture but its ground")
    return np.concatenate([rgb, object_[..., None].astype(np.float32)], -1)


SIDES = {".png": 2**31 - 1, ".jpg": 65_535, ".jpeg": 65_535, ".webp": 16_383}
"""Formats of pictures, by suffix, and the longest side that each can hold, pixels."""


def squared(
    picture: Float[Host, "H W c"], share: float, background: float
) -> Float[np.ndarray, "n n 3"]:
    """A picture on a square of one grey.

    Of a picture with transparency, what is not transparent is cut out and laid on the middle, its
    longer side `share` of the square's; another is laid there as it is.

    Raises:
      ValueError: all of it is transparent.
    """
    square = _on_square(picture, share)
    return square[..., :3] + background * (1 - square[..., 3:])


def framed(picture: Float[Host, "H W c"], share: float, side: int) -> Float[np.ndarray, "s s 4"]:
    """The same on a square of nothing, `side` pixels: straight colours, and coverage."""
    small = resize(_on_square(picture, share), (side, side))
    small[..., :3] /= np.maximum(small[..., 3:], 1e-4)
    return np.clip(small, 0.0, 1.0)


def _on_square(picture, share) -> Float[np.ndarray, "n n 4"]:
    """As `squared`, colours times coverage, and coverage, which is 0 where there is nothing."""
    alpha = picture[..., 3] if picture.shape[-1] == 4 else np.ones(picture.shape[:2], picture.dtype)
    room = 1.0
    if alpha.min() < 1.0:
        rows, columns = (np.flatnonzero((alpha > 0).any(axis)) for axis in (1, 0))
        if not len(rows):
            raise ValueError("the picture is transparent everywhere")
        cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        picture, alpha, room = picture[cut], alpha[cut], share
    height, width = alpha.shape
    side = max(height, width, int(max(height, width) / room))
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    part = square[top : top + height, left : left + width]
    part[..., :3], part[..., 3] = picture[..., :3] * alpha[..., None], alpha
    return square


def write(path: str | os.PathLike, rgb: Float[Host, "H W 3"]) -> None:
    """Write with 8 bits a channel, in the format that the suffix names.

    Raises `ValueError` and `OSError` as `demand_writable` does.
    """
    import imageio.v3 as iio

    demand_writable(path, *np.shape(rgb)[:2])
    suffix = Path(path).suffix.lower()
    lossy = {} if suffix == ".png" else {"quality": 95}
    with whole(path) as file:
        file.write_bytes(iio.imwrite("<bytes>", to_uint8(rgb), extension=suffix, **lossy))


def demand_writable(path: str | os.PathLike, height: int, width: int) -> None:
    """Find out whether a picture of this size could be written, before it is made.

    Raises:
      ValueError: The suffix names no known format, or one that has no room for the picture.
      OSError: The folder is missing, or nothing can be written there.
    """
    path = Path(path)
    most = SIDES.get(path.suffix.lower())
    if most is None:
        raise ValueError(
            f"{path}: no picture format is known for '{path.suffix}'; use {', '.join(SIDES)}"
        )
    if max(height, width) > most:
        raise ValueError(
            f"{path}: a picture of {width} x {height} pixels; {path.suffix} holds {most} a side"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if path.exists():
        with open(path, "ab"):
            return
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def write_png(path: str | os.PathLike, rgb: Float[Host, "H W 3"]) -> None:
    """Write with 8 bits a channel; the file is there whole or not at all."""
    import imageio.v3 as iio

    with whole(path) as file:
        file.write_bytes(iio.imwrite("<bytes>", to_uint8(rgb), extension=".png"))


def resize(rgb: Float[Host, "H W c"], size: tuple[int, int]) -> Float[np.ndarray, "h w c"]:
    """Resample to `size` (height, width): bilinear, smoothed first where it shrinks."""
    from skimage.transform import resize as resample

    return resample(np.asarray(rgb, np.float32), size, order=1, anti_aliasing=True)


def srgb_to_linear(srgb: Float[Host, "*n"]) -> Float[np.ndarray, "*n"]:
    """Light of a screen value, both in [0, 1] (IEC 61966-2-1)."""
    srgb = np.asarray(srgb)
    return np.where(
        srgb <= 0.04045, srgb / 12.92, (np.maximum(srgb, 0) + 0.055) ** 2.4 / 1.055**2.4
    )


def linear_to_srgb(linear: Float[Host, "*n"]) -> Float[np.ndarray, "*n"]:
    """Inverse of `srgb_to_linear`."""
    linear = np.asarray(linear)
    curve = 1.055 * np.maximum(linear, 0.0) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, curve)


def contact_sheet(
    images: Float[Host, "n H W 3"], columns: int, gap: int = 0, background: float = 1.0
) -> Float[np.ndarray, "h w 3"]:
    """Images in reading order on a grid; `gap` pixels of `background` lie between them."""
    images = np.asarray(images)
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows, height + gap, columns, width + gap, 3), background, images.dtype)
    for i, image in enumerate(images):
        sheet[i // columns, :height, i % columns, :width] = image
    sheet = sheet.reshape(rows * (height + gap), columns * (width + gap), 3)
    return sheet[: sheet.shape[0] - gap, : sheet.shape[1] - gap]


def row(images: Float[Host, "n H W 3"], gap: int = 0) -> Float[np.ndarray, "H w 3"]:
    """Images side by side."""
    return contact_sheet(images, len(images), gap)


def write_video(path: str | os.PathLike, frames: Float[Host, "n H W 3"], fps: int = 24) -> None:
    """Write `.mp4` (H.264, sides rounded up to even) or an endless `.gif`, by the suffix.

    The file is there whole or not at all. Raises `ValueError` for another suffix or no frames,
    and `OSError` where the file cannot be written or there is no ffmpeg.
    """
    import imageio.v3 as iio

    frames = to_uint8(frames)
    if not len(frames):
        raise ValueError(f"{path}: a video needs at least one frame")
    match Path(path).suffix.lower():
        case ".gif":
            how = {"plugin": "pillow", "extension": ".gif", "duration": 1000 / fps, "loop": 0}
            with whole(path) as file:
                file.write_bytes(iio.imwrite("<bytes>", frames, **how))
        case ".mp4":
            even = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
            with whole(path) as file:
                _write_mp4(file, np.pad(frames, even, mode="edge"), fps)
        case suffix:
            raise ValueError(f"{path}: no video format is known for '{suffix}'; use .mp4 or .gif")


def _write_mp4(path, frames, fps):
    """`yuv420p` and a leading index let every browser play the file while it loads."""
    from imageio_ffmpeg import get_ffmpeg_exe

    height, width = frames.shape[1:3]
    source = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i -"
    target = "-c:v libx264 -crf 18 -pix_fmt yuv420p -movflags +faststart -loglevel error -y"
    try:
        command = [get_ffmpeg_exe(), *source.split(), *target.split(), "-f", "mp4", f"file:{path}"]
    except RuntimeError as error:
        raise OSError("there is no ffmpeg: install imageio-ffmpeg with its binary") from error
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
    if done.returncode:
        told = done.stderr.decode(errors="replace").strip()
        raise OSError(told or f"ffmpeg ended with status {done.returncode}")
