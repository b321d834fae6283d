"""The autoencoder of the native prop generator: an object as one short vector.

A shape's grids (`data.prop_fields`), signed distance and shares of labels side by side, are kept
where they vary over the world, as principal components; an object's paints are nine numbers
beside them. So a latent is `[components | paints]`. Decoding is a product with the basis,
an interpolation, and a sharpening of the labels: colours come from a palette and never blend over
more than a cell. Letters: n objects, F features, d components, L labels, r points of the grid.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int8, UInt8

from jax3d import resample
from jax3d.data import prop_fields
from jax3d.types import Numbers, Params

PAINT_NUMBERS = 3 * prop_fields.PAINTS
RESOLUTION = 64
"""Points along an axis of a decoded grid."""
_PAINT_MEAN, _PAINT_SPREAD = 0.45, 0.3


class Codec(NamedTuple):
    """What encodes and decodes; frozen weights."""

    mean: Float[Array, " F"]
    basis: Int8[Array, "d F"]
    """Components in fixed point: `scale[:, None] * basis` are the features of one unit."""
    scale: Float[Array, " d"]
    spread: Float[Array, " d"]
    """Standard deviations of the components in the latents."""
    label_weight: Float[Array, ""]
    """Of shares beside distances in what the components see."""
    cells: Int[Array, " F"]
    """Where a feature lies: in the distances, then, counted on, in the shares of labels."""
    materials: Float[Array, "m 3"]
    """Colours of the labels that are no paint, sRGB."""


class Features(NamedTuple):
    """Grids of n shapes, kept where they vary."""

    values: UInt8[np.ndarray, "n F"]
    """Distances from -REACH to REACH, and shares from 0 to 1, each as 0 to 255."""
    cells: Int[np.ndarray, " F"]
    """As in `Codec`."""


_DISTANCES = prop_fields.DISTANCES**3


def flatten(distance: Float[Array, "d d d"], shares: UInt8[Array, "r r r l"]) -> UInt8[Array, " c"]:
    """One object's grids as one vector, which `Features.cells` counts in."""
    levels = jnp.round(127.5 * (1.0 + distance / prop_fields.REACH)).astype(jnp.uint8)
    return jnp.concatenate([levels.reshape(-1), shares.reshape(-1)])


def choose_cells(
    flat: UInt8[np.ndarray, "n c"], threshold: float, chunk: int = 1 << 16
) -> Int[np.ndarray, " F"]:
    """The features that vary over `flatten`ed objects.

    Distances count from a standard deviation of half a level, shares from `threshold`.
    """
    parts = np.split(flat, range(chunk, flat.shape[1], chunk), axis=1)
    spread = np.concatenate([part.std(0, dtype=np.float32) for part in parts]) / 255.0
    limit = np.where(np.arange(flat.shape[1]) < _DISTANCES, 0.5 / 255.0, threshold)
    return np.nonzero(spread > limit)[0].astype(np.int32)


def units(
    values: UInt8[Numbers, "*n F"], cells: Int[Numbers, " F"], label_weight: float | Array
) -> Array:
    """Features as the components see them: distances in [-1, 1], shares in [0, label_weight]."""
    is_distance = cells < _DISTANCES
    unit = values.astype(jnp.float32) / 255.0
    return jnp.where(is_distance, 2.0 * unit - 1.0, label_weight * unit)


def fit(features: Features, components: int, label_weight: float, power: float = 0.5) -> Codec:
    """The codec with the given number of principal components.

    Component k, of standard deviation s_k, enters the latents divided by s_k^power: 1 would let
    the flow spend itself on the last details, 0 would drown them in its noise. All are scaled
    together to a mean square of 1.

    Args:
      features: Of the shapes to fit, fewer than features.
      components: Well below the number of shapes, whose last components are rounding errors.
      label_weight: Of shares beside distances.
      power: See above.
    """
    x = np.array(units(features.values, features.cells, label_weight))
    mean = x.mean(0)
    x -= mean
    # Fewer shapes than features: the small Gram matrix has the same spectrum.
    variance, vectors = np.linalg.eigh(x @ x.T / len(x))
    order = np.argsort(-variance)[:components]
    spread = np.sqrt(variance[order])
    rows = (vectors[:, order].T @ x) / (np.sqrt(len(x)) * spread[:, None])
    scale = spread**power
    scale *= np.sqrt(np.mean((spread / scale) ** 2))
    largest = np.abs(rows).max(1)
    step = largest / 127.0
    return Codec(
        mean=jnp.asarray(mean, jnp.float32),
        basis=jnp.asarray(np.round(rows / step[:, None]), jnp.int8),
        scale=jnp.asarray(scale * step, jnp.float32),
        spread=jnp.asarray(spread / scale, jnp.float32),
        label_weight=jnp.float32(label_weight),
        cells=jnp.asarray(features.cells, jnp.int32),
        materials=jnp.asarray(prop_fields.materials()),
    )


def encode_shape(codec: Codec, values: UInt8[Numbers, "*n F"]) -> Float[Array, "*n d"]:
    """Components of kept features (`Features.values`)."""
    x = units(values, codec.cells, codec.label_weight) - codec.mean
    basis = codec.basis.astype(jnp.float32)
    # Rows are orthogonal: the transpose inverts, but for their lengths.
    return (x @ basis.T) / (codec.scale * jnp.sum(basis**2, -1))


def encode_objects(
    shapes: list[tuple[str, str]],
    seed: int,
    codec: Codec,
    report: Callable[[int], None] = lambda done: None,
) -> Float[np.ndarray, "n d"]:
    """The components, without paints, of the objects that `prop_fields.build` makes of these.

    `report` is called with the number of objects done.
    """
    encode = jax.jit(
        lambda codec, scene, labels: encode_shape(
            codec, flatten(*prop_fields.describe(scene, labels))[codec.cells]
        )
    )
    objects, rows = prop_fields.build(shapes, seed), []
    for n in range(len(shapes)):
        report(n)
        one = jax.tree.map(lambda leaf, n=n: leaf[n], objects)
        rows.append(np.asarray(encode(codec, *one)))
    return np.stack(rows)


def paint_latents(paints: Float[Numbers, "*n 3 3"]) -> Float[Numbers, "*n 9"]:
    """Paints, sRGB, as the last numbers of a latent."""
    flat = paints.reshape(*paints.shape[:-2], PAINT_NUMBERS)
    return (flat - _PAINT_MEAN) / _PAINT_SPREAD


def paint_colors(z: Float[Numbers, "*n 9"]) -> Float[Numbers, "*n 3 3"]:
    """Undoes `paint_latents`."""
    return (_PAINT_MEAN + _PAINT_SPREAD * z).reshape(*z.shape[:-1], prop_fields.PAINTS, 3)


def decode(codec: Codec, z: Float[Array, " e"]) -> Params:
    """The parameters of `fields.grid`, at `RESOLUTION` points and half side `prop_fields.HALF`."""
    shape, paint = z[:-PAINT_NUMBERS], z[-PAINT_NUMBERS:]
    x = (shape * codec.scale) @ codec.basis.astype(jnp.float32) + codec.mean
    labels = prop_fields.PAINTS + codec.materials.shape[0]
    d, r = prop_fields.DISTANCES, prop_fields.LABELS
    # Where nothing was kept it is outside and bears no label.
    dense = jnp.concatenate([jnp.ones(d**3), jnp.zeros(r**3 * labels)]).at[codec.cells].set(x)
    sdf = prop_fields.REACH * _resample(dense[: d**3].reshape(d, d, d, 1))[..., 0]
    shares = _resample(_fill(dense[d**3 :].reshape(r, r, r, labels) / codec.label_weight))
    palette = jnp.clip(jnp.concatenate([paint_colors(paint), codec.materials]), 0.0, 1.0)
    return {"sdf": sdf, "rgb": _logit(_blend(shares, palette))}


_SHARPNESS = 3
"""Power of the shares: of two labels at 0.8 and 0.2 the first gets 98%, and at 0.5 both stay, as
stripes finer than a cell should."""


def _fill(shares: Float[Array, "r r r l"]) -> Float[Array, "r r r l"]:
    """Gives cells without labels, which rays graze, the mean of their neighbours'."""
    shares = jnp.maximum(shares, 0.0)
    near = shares
    for axis in range(3):
        window = tuple(3 if a == axis else 1 for a in range(4))
        near = jax.lax.reduce_window(near, 0.0, jax.lax.add, window, (1,) * 4, "SAME")
    near = near / jnp.maximum(jnp.sum(near, -1, keepdims=True), 1e-3)
    missing = jnp.maximum(1.0 - jnp.sum(shares, -1, keepdims=True), 0.0)
    return shares + missing * near


def _blend(shares: Float[Array, "r r r l"], palette: Float[Array, "l 3"]) -> Array:
    """Colours; the asset's own one where no surface is near."""
    sharp = jnp.maximum(shares, 0.0) ** _SHARPNESS
    sharp = sharp.at[..., 0].add(1e-3)
    return (sharp @ palette) / jnp.sum(sharp, -1, keepdims=True)


def _logit(rgb: Array) -> Array:
    rgb = jnp.clip(rgb, 5e-3, 1.0 - 5e-3)
    return jnp.log(rgb) - jnp.log1p(-rgb)


def _resample(cells: Float[Array, "c c c l"]) -> Float[Array, "r r r l"]:
    """From cell-centred to corner-aligned points by cubic interpolation, axis by axis."""
    n = cells.shape[0]
    at = np.linspace(0.0, 1.0, RESOLUTION) * n - 0.5
    w = jnp.asarray(resample.bicubic(n, at, a=-0.5), jnp.float32)
    for _ in range(3):
        # Each product moves its axis behind the others but the labels: three restore the order.
        cells = jnp.einsum("pc,cxyl->xypl", w, cells)
    return cells
