"""From 3D Gaussians to footprints in a picture: EWA projection and spherical harmonics.

The conventions are gsplat's (nerfstudio-project/gsplat), to the letter: the perspective map is
replaced by its Jacobian J at the Gaussian's centre (Zwicker et al. 2001, "EWA Splatting"), where
x/z and y/z in J are held within 15 % of a picture beyond its border; the footprint's covariance is
J W Sigma W^T J^T + blur I, W the camera's rotation; pixel centres lie at +0.5; the colour is
max(0, SH(direction) + 1/2), its direction from the camera to the centre.

Letters: v views, n Gaussians, k coefficients of spherical harmonics.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax3d.math import normalize
from jax3d.types import Camera, Gaussians

CUT = 1 / 255
"""Opacities below this are not shown."""
_REACH = 3.33
"""Standard deviations from where on an opacity of 1 is below `CUT`."""
_BEYOND = 0.15
"""Share of the picture's side by which directions in J may leave it."""
_LEAST_COMPENSATION = 0.005
_FAR = 1e10
"""Centres farther than this are not shown, metres."""

SH0 = 0.28209479177387814
"""The constant harmonic: a colour is `SH0 * sh[0] + 0.5`."""


class View(NamedTuple):
    """Pinhole cameras as computer vision writes them: x right, y down, z forward."""

    viewmats: Float[Array, "v 4 4"]
    """World to camera."""
    intrinsics: Float[Array, "v 3 3"]
    """K, pixels; the upper left pixel's centre is (0.5, 0.5). Skew is not read."""


class Footprints(NamedTuple):
    """Gaussians as the pictures of some views have them."""

    means2d: Float[Array, "*v n 2"]
    """(column, row), pixels."""
    depths: Float[Array, "*v n"]
    """Along the view axis, metres."""
    conics: Float[Array, "*v n 3"]
    """The inverse covariance [[a, b], [b, c]] as (a, b, c), 1/pixel^2."""
    radii: Int[Array, "*v n 2"]
    """Half sides of the box around it, pixels, rounded up; 0 where it is not shown: out of the
    picture, or out of the range of depths."""
    compensations: Float[Array, "*v n"]
    """By how much the blur dims it: sqrt(det before / det after), at least 0.005."""
    opacities: Float[Array, "*v n"]
    """At the centre, [0, 1]; times the compensation where that is asked for."""
    extents: Float[Array, "*v n 2"]
    """Half sides of the box beyond which its opacity is below 1/255, pixels; 0 where it is that
    everywhere. Not differentiated."""
    rgb: Float[Array, "*v n 3"]
    """Colour towards the camera, >= 0."""
    normals: Float[Array, "*v n 3"]
    """The shortest axis, on the camera's side; unit length, world space."""

    @property
    def shown(self) -> Bool[Array, "*v n"]:
        """Which are in the picture at all."""
        return jnp.all(self.radii > 0, axis=-1)


def view_of(camera: Camera, size: tuple[int, int]) -> View:
    """Our cameras `[v]` as `View`, for pictures of `size` (H, W); differentiable.

    `c2w` is taken for a rigid motion.
    """
    height, width = size
    turn = jnp.swapaxes(camera.c2w[..., :3, :3], -1, -2)
    move = -jnp.sum(turn * camera.c2w[..., None, :3, 3], axis=-1)
    flip = jnp.array([1, -1, -1], turn.dtype)
    upper = jnp.concatenate([turn, move[..., None]], axis=-1) * flip[:, None]
    last = jnp.broadcast_to(jnp.array([0, 0, 0, 1], turn.dtype), (*upper.shape[:-2], 1, 4))
    focal = height / 2 / jnp.tan(camera.fovy / 2)
    zero, one = jnp.zeros_like(focal), jnp.ones_like(focal)
    rows = [[focal, zero, width / 2 * one], [zero, focal, height / 2 * one], [zero, zero, one]]
    intrinsics = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    return View(jnp.concatenate([upper, last], axis=-2), intrinsics)


def project(
    gaussians: Gaussians,
    view: View,
    size: tuple[int, int],
    *,
    antialiased: bool = False,
    blur: float = 0.3,
    near: float = 0.01,
) -> Footprints:
    """The footprints of Gaussians in pictures of `size` (H, W), differentiable in all but the size.

    Args:
      gaussians: One scene, `[n]`.
      view: Whose pictures.
      size: Static.
      antialiased: Dim a footprint by what the blur adds to it (Mip-Splatting), instead of letting
        small Gaussians grow.
      blur: Added to the variances of every footprint, pixels^2.
      near: Centres that are not beyond this depth, metres, are not shown.
    """
    local = _times(view.viewmats[:, None, :3, :3], gaussians.means)
    local = local + view.viewmats[:, None, :3, 3]
    depths = local[..., 2]
    ahead = (depths > near) & (depths < _FAR)
    x, y, z = local[..., 0], local[..., 1], jnp.where(jnp.abs(depths) > 1e-4, depths, 1.0)

    axes = rotations(gaussians.quats)
    u, w = _footprint_axes(axes * gaussians.scales[:, None, :], x / z, y / z, z, view, size)
    xx, xy, yy = (jnp.sum(a * b, axis=-1) for a, b in ((u, u), (u, w), (w, w)))
    before = jnp.sum(jnp.cross(u, w) ** 2, axis=-1)
    after = before + blur * (xx + yy) + blur**2
    conics = jnp.stack([yy + blur, -xy, xx + blur], axis=-1) / after[..., None]
    least = _LEAST_COMPENSATION**2
    compensations = jnp.sqrt(jnp.maximum(before / after, least))
    dimmed = compensations if antialiased else jnp.ones_like(compensations)
    opacities = gaussians.opacities * dimmed

    fx, fy, cx, cy = _pinhole(view)
    means2d = jnp.stack([fx * x / z + cx, fy * y / z + cy], axis=-1)
    deviations = jax.lax.stop_gradient(jnp.sqrt(jnp.stack([xx, yy], axis=-1) + blur))
    radii = _radii(jax.lax.stop_gradient(means2d), deviations, ahead, size)
    visible = jnp.maximum(jax.lax.stop_gradient(opacities), CUT)
    reach = jnp.minimum(jnp.sqrt(2 * jnp.log(visible / CUT)), _REACH)
    away = gaussians.means - _centres(view.viewmats)[:, None]
    return Footprints(
        means2d=means2d,
        depths=depths,
        conics=conics,
        radii=radii,
        compensations=compensations,
        opacities=opacities,
        extents=reach[..., None] * deviations,
        rgb=jnp.maximum(harmonics(gaussians.sh, normalize(away)) + 0.5, 0.0),
        normals=_towards(_shortest(axes, gaussians.scales), -away),
    )


def rotations(quats: Float[Array, "*n 4"]) -> Float[Array, "*n 3 3"]:
    """Matrices, whose columns are the turned axes, of quaternions (w, x, y, z) of any length."""
    w, x, y, z = jnp.moveaxis(normalize(quats, 1e-12), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def harmonics(sh: Float[Array, "*n k 3"], directions: Float[Array, "*v 3"]) -> Float[Array, "*v 3"]:
    """Real spherical harmonics of degree 0 to 3 (k of 1, 4, 9 or 16) along unit directions."""
    basis = harmonic_basis(*jnp.moveaxis(directions, -1, 0), sh.shape[-2])
    return sum(b[..., None] * sh[..., i, :] for i, b in enumerate(basis))


def harmonic_basis(x: Any, y: Any, z: Any, count: int) -> list[Any]:
    """The first `count` (1, 4, 9 or 16) real spherical harmonics of unit vectors, by arithmetic.

    Signs as in 3D Gaussian splatting: with the Condon-Shortley phase.
    """
    basis = [SH0 + 0 * x]
    if count > 1:
        basis += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if count > 4:
        basis += [
            1.092548430592079 * x * y,
            -1.092548430592079 * y * z,
            0.3153915652525201 * (2 * z * z - x * x - y * y),
            -1.092548430592079 * x * z,
            0.5462742152960395 * (x * x - y * y),
        ]
    if count > 9:
        basis += [
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * z * z - x * x - y * y),
            0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -0.4570457994644658 * x * (4 * z * z - x * x - y * y),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ]
    return basis


def _times(matrix: Float[Array, "*a 3 3"], x: Float[Array, "*b 3"]) -> Float[Array, "*c 3"]:
    """Matrix times vector, broadcast. As a sum of columns: a batch of small products is slow."""
    return sum(matrix[..., :, i] * x[..., None, i] for i in range(3))


def _pinhole(view: View):
    """fx, fy, cx, cy, each `[v 1]`."""
    k = view.intrinsics[:, None]
    return k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]


def _footprint_axes(half: Float[Array, "n 3 3"], x, y, z, view: View, size: tuple[int, int]):
    """The rows, `[v n 3]` each, of J W R diag(s); the covariance is their products."""
    fx, fy, cx, cy = _pinhole(view)
    height, width = size
    x = _held(x, cx / fx, width / fx)
    y = _held(y, cy / fy, height / fy)
    w = view.viewmats[:, None, :3, :3]
    across = (fx / z)[..., None] * (w[..., 0, :] - x[..., None] * w[..., 2, :])
    down = (fy / z)[..., None] * (w[..., 1, :] - y[..., None] * w[..., 2, :])
    turned = jnp.swapaxes(half, -1, -2)
    return _times(turned, across), _times(turned, down)


def _held(x, centre, width):
    """x/z, or y/z, held to the picture and a margin."""
    return jnp.clip(x, -centre - _BEYOND * width, (1 + _BEYOND) * width - centre)


def _radii(means2d, deviations, ahead, size: tuple[int, int]) -> Int[Array, "v n 2"]:
    """The half sides of boxes, 0 where a box does not reach into the picture."""
    radii = jnp.ceil(_REACH * deviations)
    height, width = size
    limit = jnp.array([width, height], means2d.dtype)
    inside = (means2d + radii > 0) & (means2d - radii < limit)
    shown = ahead & jnp.all(inside, axis=-1)
    # A float that has left int32, or is none, has no box.
    radii = jnp.where(shown[..., None] & (radii < 2**30), radii, 0.0)
    return radii.astype(jnp.int32)


def _centres(viewmats: Float[Array, "v 4 4"]) -> Float[Array, "v 3"]:
    """Where the cameras stand: the last column of the inverse, which need not be rigid."""
    a, b, c = (viewmats[:, i, :3] for i in range(3))
    t = viewmats[:, :3, 3, None]
    moved = t[:, 0] * jnp.cross(b, c) + t[:, 1] * jnp.cross(c, a) + t[:, 2] * jnp.cross(a, b)
    moved = moved / jnp.sum(a * jnp.cross(b, c), axis=-1, keepdims=True)
    scale = viewmats[:, 3, 3] - jnp.sum(viewmats[:, 3, :3] * moved, axis=-1)
    return -moved / scale[:, None]


def _shortest(axes: Float[Array, "n 3 3"], scales: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    column = jnp.argmin(scales, axis=-1)[:, None, None]
    return jnp.take_along_axis(axes, column, axis=-1)[..., 0]


def _towards(normals: Float[Array, "n 3"], back: Float[Array, "v n 3"]) -> Float[Array, "v n 3"]:
    """Normals turned to the side that `back` points to."""
    return jnp.where(jnp.sum(normals * back, axis=-1, keepdims=True) < 0, -normals, normals)
