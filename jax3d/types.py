"""The structures that cross module borders.

Letters, here and everywhere: A assets, v views, H and W pixels, n points, s samples along a ray.
World space is right-handed with +z up; cameras follow OpenGL (look down -z, +y up); angles are
radians. All structures are pytrees, so they can be vmapped, sharded and donated.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

Params = Any
"""A pytree of arrays."""


Numbers = jax.Array | np.ndarray | jax.ShapeDtypeStruct
"""Leaves of structures that also live on the host, or are asked for their shapes alone."""

Scalars = Numbers | np.generic
"""The same where a leaf may be a single number."""


@struct.dataclass
class Camera:
    """Pinhole cameras, one per leading index, with their nominal orbit coordinates.

    `azimuth`, `elevation` and `radius` are what the orbit asked for; `c2w` may carry jitter on
    top of them. Critics and view-dependent prompts read the orbit, the renderer reads `c2w`.
    """

    c2w: Float[Numbers, "*v 4 4"]
    """Camera-to-world, OpenGL axes."""
    fovy: Float[Numbers, "*v"]
    """Vertical field of view, radians."""
    azimuth: Float[Numbers, "*v"]
    """Radians; 0 looks at the object's front (from world +x), growing counter-clockwise."""
    elevation: Float[Numbers, "*v"]
    """Radians above the horizon."""
    radius: Float[Numbers, "*v"]
    """Distance from the orbit's centre, metres."""


@struct.dataclass
class Rays:
    """Half-lines in world space; `directions` are of unit length."""

    origins: Float[Array, "*n 3"]
    directions: Float[Array, "*n 3"]


@struct.dataclass
class Look:
    """How a representation is shown: the traced part of a render call.

    `rgb = albedo * (ambient + (1 - ambient) * max(0, n . l))`; `ambient = 1` shows the bare
    albedo and `textureless = 1` replaces the albedo by white (DreamFusion, section 3.1).
    """

    background: Float[Array, "*v 3"]
    """What is put behind the object, [0, 1]; representations do not read it."""
    ambient: Float[Array, "*v"]
    textureless: Float[Array, "*v"]
    light: Float[Array, "*v 3"]
    """Unit vector from the object towards the light, world space."""

    @classmethod
    def albedo(cls, background=(1.0, 1.0, 1.0)) -> "Look":
        """Unlit colours over one background, the same for every view."""
        return cls(
            background=jnp.asarray(background, jnp.float32),
            ambient=jnp.ones(()),
            textureless=jnp.zeros(()),
            light=jnp.array([0.0, 0.0, 1.0]),
        )


@struct.dataclass
class Render:
    """What a representation shows to `v` cameras, not yet over any background."""

    rgb: Float[Array, "*v H W 3"]
    """Colour times opacity, [0, 1]; `over` shows it."""
    alpha: Float[Array, "*v H W"]
    """Opacity, [0, 1]."""
    depth: Float[Array, "*v H W"]
    """Expected distance along the ray, metres; meaningful where alpha is not small."""
    normal: Float[Array, "*v H W 3"]
    """Alpha-weighted world-space normals (length <= 1)."""
    orient: Float[Array, "*v H W"]
    """Orientation penalty sum_i w_i max(0, n_i . d)^2 (Ref-NeRF, eq. 11)."""
    weights: Float[Array, "*v H W s"] | None = None
    """Compositing weights of the fine samples, where the representation has such."""
    background: Float[Array, "*v H W 3"] | None = None
    """What the representation itself has learnt to put behind the object, [0, 1]."""
    overflow: Int[Array, "*v"] | None = None
    """What was left out for want of room, where the representation has rooms of fixed size; 0: the
    picture is right."""

    def over(self, background: Any) -> Float[Array, "*v H W 3"]:
        """The pictures over a background: `[3]`, one colour a view or one a pixel."""
        background = jnp.asarray(background)
        if 1 < background.ndim < self.rgb.ndim:
            background = background[..., None, None, :]
        return self.rgb + (1 - self.alpha)[..., None] * background


@struct.dataclass
class Gaussians:
    """3D Gaussians with their true values: none is a logarithm or a logit (Kerbl et al. 2023).

    A Gaussian's covariance is R diag(scales^2) R^T, R of `quats`; its opacity is that of its
    centre, seen from anywhere.
    """

    means: Float[Numbers, "*b n 3"]
    """Centres, metres, world space."""
    quats: Float[Numbers, "*b n 4"]
    """Rotations (w, x, y, z) of any length above 0."""
    scales: Float[Numbers, "*b n 3"]
    """Standard deviations along the axes, metres, >= 0."""
    opacities: Float[Numbers, "*b n"]
    """[0, 1]."""
    sh: Float[Numbers, "*b n k 3"]
    """Real spherical harmonics of the colour less 1/2, sRGB, in world axes; k is (degree + 1)^2, of
    degree 0 to 3."""


@struct.dataclass
class Mesh:
    """A triangle mesh with an optional texture. Host-side: leaves are NumPy arrays."""

    vertices: Any
    """[V, 3] float, metres, world axes (+z up)."""
    faces: Any
    """[F, 3] int, counter-clockwise seen from outside."""
    colors: Any = None
    """[V, 3] float sRGB in [0, 1], or None."""
    uvs: Any = None
    """[V, 2] float in [0, 1], origin at the lower left, or None."""
    texture: Any = None
    """[H, W, 3] float sRGB in [0, 1], first row at the top, or None."""


class Prompt(NamedTuple):
    """What a person asks for."""

    text: str
    negative: str = ""
    """What it shall not be, in place of the unconditional prompt."""
    image: Any = None
    """A picture of it, `[H, W, 3 or 4]` sRGB in [0, 1], for networks that look at one; `[n, H, W, 3
    or 4]` for those that look at several."""
    elevation: float = 0.0
    """Degrees from which the picture was taken."""


@struct.dataclass
class Cond:
    """What a network is told of one picture, beside its camera.

    Leading axes are free: `[4]` for the side/front/back/overhead wordings of one prompt, `[v]`
    after the views have chosen, `[A, 4]` in a sweep.
    """

    tokens: Float[Numbers, "*b L D"]
    """Per-token embeddings; padding is zero."""
    pooled: Float[Numbers, "*b P"] | None = None
    """A second, pooled embedding for critics that ask for one (SDXL)."""
    image: Float[Numbers, "*b h w c"] | None = None
    """The picture at hand, in the network's own pixels or latents."""
    source: Camera | None = None
    """The camera of that picture."""


@struct.dataclass
class Condition:
    """What guidance needs to know of one asset's prompt."""

    plain: Cond
    """No leading axis: the prompt as it was given."""
    null: Cond
    """No leading axis: the unconditional (or negative) prompt."""
    views: Cond | None = None
    """`[4, ...]`: the prompt worded for side, front, back and overhead views, in this order; None
    where no words tell the view."""
    negative: Cond | None = None
    """No leading axis: what the image shall not be, beside the null text (NFSD)."""
    given: Float[Numbers, "*A s s 4"] | None = None
    """The picture at hand as the camera `plain.source` sees it, straight sRGB and coverage."""


@struct.dataclass
class Ramp:
    """A number that moves linearly from `start` to `end` between two steps, constant outside."""

    start: Float[Scalars, "*A"]
    end: Float[Scalars, "*A"]
    begin: Float[Scalars, "*A"]
    """Step at which the movement starts."""
    steps: Float[Scalars, "*A"]
    """Steps that the movement takes; 0 is a jump."""

    @classmethod
    def of(cls, start, end=None, begin=0, steps=0) -> "Ramp":
        """A ramp from plain numbers; one number is a constant."""
        end = start if end is None else end
        return cls(*(jnp.asarray(x, jnp.float32) for x in (start, end, begin, steps)))

    def at(self, step) -> Float[Array, "*A"]:
        """The value at `step`."""
        progress = jnp.clip((step - self.begin) / jnp.maximum(self.steps, 1e-6), 0.0, 1.0)
        return self.start + progress * (self.end - self.start)


@struct.dataclass
class AssetState:
    """All that changes while one asset is optimised; what a checkpoint holds."""

    step: Any
    """int32 [*A], on a device, on the host, or a mere shape"""
    params: Params
    opt_state: Any
    memory: Any = ()
    """What the representation keeps beside its parameters; see `fields.base`."""
    guidance: tuple[Params, ...] = ()
    """What the terms' guidances train beside the asset (VSD's LoRA); None for most."""
    shown: Float[Numbers, "*A n H W 3"] | None = None
    """Pictures from which its start was made, on their way to people."""


Key = jax.Array
"""A PRNG key made by `jax.random.key`."""
