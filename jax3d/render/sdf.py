"""Sphere tracing of scenes made of signed-distance primitives.

A `Scene` has a fixed number of slots per kind of primitive, so that every object of the prop world
is the same program and objects batch by `vmap`. A slot's role says what it does:

    distance = min( max( min(ADD), -min(CARVE) ), min(LATE) )

Distances follow I. Quilez, "Distance functions" (iquilezles.org); tracing follows J. C. Hart,
"Sphere tracing" (1996). The ellipsoid's distance is a first-order bound, hence the step factor.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jax3d.types import Numbers, Rays

SLOTS = {"box": 14, "cone": 12, "ellipsoid": 12, "torus": 2}
"""Primitives of each kind in a scene, in the order of the primitive axis."""

EMPTY, ADD, CARVE, LATE = range(4)
PLAIN, STRIPES, SPOTS = range(3)

_FAR = 1e3
_STEP = 0.9


@struct.dataclass
class Scene:
    """Primitives, `P = sum(SLOTS.values())` of them on the last leading axis."""

    center: Float[Numbers, "*p 3"]
    rotation: Float[Numbers, "*p 3 3"]
    """Local to world."""
    shape: Float[Numbers, "*p 4"]
    """box: half sides and rounding; cone: radius below, above, half height, rounding;
    ellipsoid: radii; torus: large and small radius (axis z)."""
    role: Int[Numbers, "*p"]
    """EMPTY, ADD, CARVE or LATE."""
    color: Float[Numbers, "*p 2 3"]
    """sRGB in [0, 1]; the second shows in the pattern."""
    pattern: Int[Numbers, "*p"]
    """PLAIN, STRIPES (across local z) or SPOTS."""
    period: Float[Numbers, "*p"]
    """Length of the pattern's period in the primitive's own units."""


def _box(x, y, z, shape):
    qx, qy, qz = (jnp.abs(c) - shape[i] + shape[3] for i, c in enumerate((x, y, z)))
    outside = sum(jnp.maximum(q, 0.0) ** 2 for q in (qx, qy, qz))
    inside = jnp.minimum(jnp.maximum(jnp.maximum(qx, qy), qz), 0.0)
    return jnp.sqrt(outside) + inside - shape[3]


def _cone(x, y, z, shape):
    low, high, half = shape[0] - shape[3], shape[1] - shape[3], shape[2] - shape[3]
    r = jnp.sqrt(x**2 + y**2)
    cap_r = r - jnp.minimum(r, jnp.where(z < 0, low, high))
    cap_z = jnp.abs(z) - half
    slope_r, slope_z = high - low, 2 * half
    along = ((high - r) * slope_r + (half - z) * slope_z) / (slope_r**2 + slope_z**2)
    along = jnp.clip(along, 0.0, 1.0)
    side_r, side_z = r - high + slope_r * along, z - half + slope_z * along
    sign = jnp.where((side_r < 0) & (cap_z < 0), -1.0, 1.0)
    nearest = jnp.minimum(cap_r**2 + cap_z**2, side_r**2 + side_z**2)
    return sign * jnp.sqrt(nearest) - shape[3]


def _ellipsoid(x, y, z, shape):
    inverse = 1.0 / shape[:3]
    ux, uy, uz = x * inverse[0], y * inverse[1], z * inverse[2]
    k0 = jnp.sqrt(ux**2 + uy**2 + uz**2)
    k1 = jnp.sqrt((ux * inverse[0]) ** 2 + (uy * inverse[1]) ** 2 + (uz * inverse[2]) ** 2)
    return k0 * (k0 - 1.0) / jnp.maximum(k1, 1e-6)


def _torus(x, y, z, shape):
    ring = jnp.sqrt(x**2 + y**2) - shape[0]
    return jnp.sqrt(ring**2 + z**2) - shape[1]


_DISTANCE = {"box": _box, "cone": _cone, "ellipsoid": _ellipsoid, "torus": _torus}


def _fold(scene: Scene, p, carry, visit):
    """Folds `visit(carry, primitive, local xyz, distance) -> carry` over all primitives.

    Points are kept as three arrays with n innermost: a primitive is then one vectorised kernel.
    """
    px, py, pz = p[..., 0], p[..., 1], p[..., 2]
    first = 0
    for kind, count in SLOTS.items():

        def step(carry, primitive, distance_of=_DISTANCE[kind]):
            dx, dy, dz = (q - primitive.center[i] for i, q in enumerate((px, py, pz)))
            turn = primitive.rotation
            local = [dx * turn[0, i] + dy * turn[1, i] + dz * turn[2, i] for i in range(3)]
            return visit(carry, primitive, local, distance_of(*local, primitive.shape)), None

        mine = jax.tree.map(lambda leaf, a=first, b=first + count: leaf[a:b], scene)
        carry, _ = jax.lax.scan(step, carry, mine)
        first += count
    return carry


def distance(scene: Scene, p: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
    """Signed distance (a lower bound outside) of one scene at points `p`, scene units."""

    def visit(carry, primitive, _, d):
        roles = (ADD, CARVE, LATE)
        return tuple(
            jnp.minimum(best, jnp.where(primitive.role == role, d, _FAR))
            for best, role in zip(carry, roles, strict=True)
        )

    base, carve, late = _fold(scene, p, (jnp.full(p.shape[:-1], _FAR),) * 3, visit)
    return jnp.minimum(jnp.maximum(base, -carve), late)


def albedo(scene: Scene, p: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Colour of the primitive nearest to each point, its pattern applied; sRGB in [0, 1]."""

    def visit(carry, primitive, local, d):
        best, rgb = carry
        scaled = [c / primitive.period for c in local]
        stripes = jnp.mod(scaled[2] + 0.25, 1.0) < 0.5
        spots = sum((jnp.mod(c, 1.0) - 0.5) ** 2 for c in scaled) < 0.11
        second = ((primitive.pattern == STRIPES) & stripes) | ((primitive.pattern == SPOTS) & spots)
        nearer = ((primitive.role == ADD) | (primitive.role == LATE)) & (d < best)
        color = [
            jnp.where(nearer, jnp.where(second, primitive.color[1, i], primitive.color[0, i]), old)
            for i, old in enumerate(rgb)
        ]
        return jnp.where(nearer, d, best), tuple(color)

    start = (jnp.full(p.shape[:-1], _FAR), (jnp.zeros(p.shape[:-1]),) * 3)
    return jnp.stack(_fold(scene, p, start, visit)[1], -1)


def normal(scene: Scene, p: Float[Array, "*n 3"], eps: float = 2e-3) -> Float[Array, "*n 3"]:
    """Unit gradient of the distance by four tetrahedral differences."""
    corners = jnp.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], p.dtype)

    def add(total, corner):
        return total + corner * distance(scene, p + eps * corner)[..., None], None

    n, _ = jax.lax.scan(add, jnp.zeros_like(p), corners)
    return n / jnp.maximum(jnp.sqrt(jnp.sum(n**2, -1, keepdims=True)), 1e-9)


def trace(
    scene: Scene,
    rays: Rays,
    bound: float,
    pixel: Float[Array, ""],
    steps: int = 32,
) -> tuple[Float[Array, "*n 3"], Float[Array, "*n"], Float[Array, "*n"]]:
    """Where rays meet one scene inside a sphere.

    Args:
      scene: One scene, without leading axes.
      rays: In the scene's units; origins outside the sphere.
      bound: Radius of the sphere around the origin that holds the scene.
      pixel: Width of a pixel at unit distance, for the coverage of silhouettes.
      steps: Upper limit of the marching steps.

    Returns:
      The point of each ray nearest to the surface, its distance along the ray, and the ray's
      coverage in [0, 1]: 1 where it hits, falling to 0 within a pixel of the silhouette.
    """
    middle = -jnp.sum(rays.origins * rays.directions, -1)
    miss2 = jnp.sum(rays.origins**2, -1) - middle**2
    half = jnp.sqrt(jnp.maximum(bound**2 - miss2, 0.0))
    near, far = middle - half, middle + half

    def march(carry):
        i, t, best_t, best, active = carry
        d = distance(scene, rays.origins + t[..., None] * rays.directions)
        relative = d / (pixel * t)
        closer = active & (relative < best)
        best_t, best = jnp.where(closer, t, best_t), jnp.where(closer, relative, best)
        t = jnp.where(active, t + _STEP * d, t)
        return i + 1, t, best_t, best, active & (relative > 0.05) & (t < far)

    start = (0, near, near, jnp.full(near.shape, _FAR), far > near)
    _, _, t, nearest, _ = jax.lax.while_loop(
        lambda carry: (carry[0] < steps) & jnp.any(carry[4]), march, start
    )
    coverage = jnp.clip(1.0 - nearest, 0.0, 1.0)
    return rays.origins + t[..., None] * rays.directions, t, coverage
