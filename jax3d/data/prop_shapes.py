"""How each class of the prop world is put together from primitives.

A builder describes all objects of its class at once: every number may be a scalar or an array
over the objects, and `p.u(lo, hi)` draws the next random proportion. Lengths are arbitrary; the
scene is centred and scaled at the end. Front is +x, left is +y, up is +z.
"""

import numpy as np

from jax3d.render import sdf

WHITE, CREAM = (0.93, 0.93, 0.92), (0.93, 0.87, 0.72)
BLACK, DARK, STEEL = (0.06, 0.06, 0.07), (0.22, 0.22, 0.25), (0.62, 0.65, 0.70)
WOOD, BARK, SKIN = (0.50, 0.30, 0.14), (0.36, 0.23, 0.12), (0.96, 0.80, 0.62)
GLASS, GOLD, ORANGE = (0.42, 0.62, 0.75), (0.90, 0.70, 0.20), (0.95, 0.50, 0.08)
LIGHT, RED = (0.99, 0.95, 0.65), (0.80, 0.10, 0.10)


class Parts:
    """Collects the primitives of `n` objects of one class.

    `color` is the object's own colour `[n, 3]`, `has[attribute]` a boolean `[n]`.
    """

    def __init__(self, n: int, color: np.ndarray, has: dict[str, np.ndarray], uniforms: np.ndarray):
        self.n, self.color, self.has = n, color, has
        self._uniforms, self._drawn = uniforms, 0
        self._slots: dict[str, list[dict]] = {kind: [] for kind in sdf.SLOTS}
        bright = color.sum(-1, keepdims=True) > 2.2
        self.contrast = np.where(bright, np.array([0.25, 0.35, 0.75]), np.array(WHITE))
        """What stripes and spots are painted in."""
        self.shade = color * 0.62
        """A darker tone of the object's colour, for details."""

    def u(self, lo: float, hi: float) -> np.ndarray:
        """The next proportion, uniform in [lo, hi), one for each object."""
        self._drawn += 1
        return lo + (hi - lo) * self._uniforms[:, self._drawn - 1]

    def pick(self, attribute: str, yes, no):
        """`yes` where the object has the attribute, else `no`."""
        return np.where(self.has[attribute], yes, no)

    def painted(self) -> np.ndarray:
        """The main surface's pattern, from the attributes 'striped' and 'spotted'."""
        never = np.zeros(self.n, bool)
        striped, spotted = (self.has.get(a, never) for a in ("striped", "spotted"))
        return np.select([striped, spotted], [sdf.STRIPES, sdf.SPOTS], sdf.PLAIN)

    def box(self, center, half, color=None, edge=0.02, **rest):
        """A rounded box of the given half sides."""
        x, y, z = half
        self._add("box", center, (x, y, z, edge), color, **rest)

    def cone(self, center, low, high, half, color=None, edge=0.01, **rest):
        """A capped cone: radius below and above, half its height."""
        self._add("cone", center, (low, high, half, edge), color, **rest)

    def ball(self, center, radii, color=None, **rest):
        """An ellipsoid; one radius makes a sphere."""
        x, y, z = radii if isinstance(radii, tuple) else (radii, radii, radii)
        self._add("ellipsoid", center, (x, y, z, 0.0), color, **rest)

    def ring(self, center, large, small, color=None, **rest):
        """A torus around local z."""
        self._add("torus", center, (large, small, 0.0, 0.0), color, **rest)

    def _add(
        self,
        kind,
        center,
        shape,
        color,
        on=True,
        turn=(0.0, 0.0, 0.0),
        role=sdf.ADD,
        second=None,
        pattern=sdf.PLAIN,
        period=0.2,
    ):
        """`turn` rotates about x, then y, then z (degrees); `on` says which objects have it."""

        def column(value, width):
            value = np.broadcast_to(np.asarray(value, np.float32), (self.n, width))
            return value.astype(np.float32)

        def stack(values):
            return np.stack([np.broadcast_to(v, (self.n,)) for v in values], -1).astype(np.float32)

        first = column(self.color if color is None else color, 3)
        second = column(self.contrast if second is None else second, 3)
        on = np.broadcast_to(on, (self.n,))
        self._slots[kind].append(
            {
                "center": stack(center),
                "rotation": _rotation(stack(turn)),
                "shape": np.maximum(stack(shape), 0.0),
                "role": np.where(on, role, sdf.EMPTY).astype(np.int32),
                "color": np.stack([first, second], 1),
                "pattern": np.broadcast_to(pattern, (self.n,)).astype(np.int32),
                "period": np.broadcast_to(period, (self.n,)).astype(np.float32),
            }
        )

    def scene(self) -> sdf.Scene:
        """All primitives in their slots, centred, with a bounding-box diagonal of 1.7."""
        ordered = []
        for kind, count in sdf.SLOTS.items():
            mine = self._slots[kind]
            if len(mine) > count:
                raise ValueError(f"{len(mine)} primitives of kind {kind}; sdf.SLOTS has {count}")
            ordered += mine + [self._empty()] * (count - len(mine))
        fields = {name: np.stack([part[name] for part in ordered], 1) for name in ordered[0]}
        center, scale = self._placement()
        fields["center"] = (fields["center"] - center[:, None]) * scale[:, None, None]
        fields["shape"] = fields["shape"] * scale[:, None, None]
        fields["period"] = fields["period"] * scale[:, None]
        return sdf.Scene(**fields)

    def _empty(self):
        eye = np.broadcast_to(np.eye(3, dtype=np.float32), (self.n, 3, 3))
        return {
            "center": np.zeros((self.n, 3), np.float32),
            "rotation": eye,
            "shape": np.ones((self.n, 4), np.float32),
            "role": np.zeros(self.n, np.int32),
            "color": np.zeros((self.n, 2, 3), np.float32),
            "pattern": np.zeros(self.n, np.int32),
            "period": np.ones(self.n, np.float32),
        }

    def _placement(self):
        """Centre of the bounding box and the scale that makes its diagonal 1.7."""
        low, high = np.full((self.n, 3), np.inf), np.full((self.n, 3), -np.inf)
        for kind, mine in self._slots.items():
            for part in mine:
                s, turn = part["shape"], part["rotation"]
                match kind:
                    case "box":
                        extent = np.einsum("nij,nj->ni", np.abs(turn), s[:, :3])
                    case "ellipsoid":
                        extent = np.sqrt(np.einsum("nij,nj->ni", turn**2, s[:, :3] ** 2))
                    case "cone":
                        axis, r = turn[:, :, 2], np.maximum(s[:, 0], s[:, 1])[:, None]
                        extent = np.abs(axis) * s[:, 2:3] + r * np.sqrt(np.maximum(1 - axis**2, 0))
                    case "torus":
                        axis = turn[:, :, 2]
                        extent = s[:, :1] * np.sqrt(np.maximum(1 - axis**2, 0)) + s[:, 1:2]
                solid = np.isin(part["role"], (sdf.ADD, sdf.LATE))[:, None]
                low = np.where(solid, np.minimum(low, part["center"] - extent), low)
                high = np.where(solid, np.maximum(high, part["center"] + extent), high)
        return (low + high) / 2, 1.7 / np.linalg.norm(high - low, axis=-1)


def _rotation(degrees: np.ndarray) -> np.ndarray:
    """[n, 3] turns about x, then y, then z -> [n, 3, 3]."""
    (cx, cy, cz), (sx, sy, sz) = (f(np.radians(degrees)).T for f in (np.cos, np.sin))
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.stack([np.stack(row, -1) for row in rows], 1).astype(np.float32)


def _corners(x, y):
    return [(sx * x, sy * y) for sx in (-1, 1) for sy in (-1, 1)]


# ---------------------------------------------------------------------------------- furniture


def chair(p: Parts):
    w, d, leg = p.u(0.40, 0.48), p.u(0.38, 0.46), p.u(0.40, 0.50)
    back = p.u(0.40, 0.52) * p.pick("tall", 1.7, 1.0)
    p.box((0, 0, 0), (d, w, 0.07), edge=0.03)
    p.box((-d + 0.06, 0, back), (0.07, w, back * 0.55), edge=0.04, pattern=p.painted(), period=0.28)
    for side in (-1, 1):
        p.box((-d + 0.06, side * (w - 0.06), back / 2), (0.05, 0.05, back / 2), p.shade)
    for x, y in _corners(d - 0.07, w - 0.07):
        p.box((x, y, -leg / 2), (0.055, 0.055, leg / 2), p.shade)
    arms = p.has["armrests"]
    for side in (-1, 1):
        p.box((0, side * w, 0.36), (d, 0.07, 0.05), on=arms, edge=0.03)
        p.box((d - 0.08, side * w, 0.18), (0.05, 0.05, 0.18), p.shade, on=arms)


def sofa(p: Parts):
    w = p.u(0.75, 0.9) * p.pick("long", 1.45, 1.0)
    d, back = p.u(0.40, 0.46), p.u(0.42, 0.52)
    p.box((0, 0, 0.0), (d, w, 0.16), edge=0.05)
    for side in (-1, 1):
        p.box((0.06, side * w * 0.46, 0.20), (d - 0.04, w * 0.44, 0.09), edge=0.06,
              pattern=p.painted(), period=0.09)  # fmt: skip
        p.box((0, side * (w + 0.06), 0.12), (d, 0.11, 0.28), p.shade, edge=0.08)
        p.box((-d + 0.22, side * w * 0.46, 0.42), (0.09, w * 0.44, 0.20), edge=0.07,
              pattern=p.painted(), period=0.2)  # fmt: skip
    p.box((-d + 0.08, 0, back * 0.5), (0.11, w, back * 0.62), edge=0.08)
    for x, y in _corners(d - 0.08, w - 0.04):
        p.cone((x, y, -0.24), 0.04, 0.06, 0.09, BARK)


def bed(p: Parts):
    w, d, head = p.u(0.50, 0.62), p.u(0.80, 0.95), p.u(0.34, 0.44)
    head = head * p.pick("tall", 1.7, 1.0)
    p.box((0, 0, 0), (d, w, 0.10), WOOD)
    p.box((0, 0, 0.16), (d - 0.04, w - 0.03, 0.10), WHITE, edge=0.05)
    p.box((0.20, 0, 0.18), (d - 0.22, w, 0.11), edge=0.05, pattern=p.painted(), period=0.3,
          turn=(0, 0, 0))  # fmt: skip
    p.box((-d, 0, head - 0.15), (0.06, w + 0.04, head), WOOD, edge=0.04)
    p.box((d, 0, 0.05), (0.05, w + 0.04, 0.19), WOOD, edge=0.04)
    for side in (-1, 1):
        p.box((-d + 0.26, side * w * 0.46, 0.30), (0.15, w * 0.36, 0.06), WHITE, edge=0.05)
    for x, y in _corners(d - 0.03, w - 0.03):
        p.box((x, y, -0.18), (0.06, 0.06, 0.10), BARK)
    for k in (-1, 0, 1):
        p.box((0.2 + 0.42 * k, 0, 0.185), (0.07, w + 0.005, 0.112), p.contrast,
              on=p.has["striped"], edge=0.05)  # fmt: skip


def table(p: Parts):
    w, d = p.u(0.62, 0.75) * p.pick("long", 1.45, 1.0), p.u(0.48, 0.58)
    leg = p.u(0.42, 0.50) * p.pick("tall", 1.8, 1.0)
    round_, r = p.has["round"], (w + d) / 2
    square = ~round_
    p.box((0, 0, 0), (d, w, 0.06), on=square, edge=0.02)
    p.box((0, 0, -0.10), (d - 0.08, w - 0.08, 0.06), p.shade, on=square)
    for x, y in _corners(d - 0.09, w - 0.09):
        p.box((x, y, -leg), (0.06, 0.06, leg), on=square)
    p.cone((0, 0, 0), r, r, 0.055, on=round_)
    p.cone((0, 0, -leg), 0.09, 0.09, leg, p.shade, on=round_)
    p.cone((0, 0, -2 * leg + 0.03), r * 0.55, r * 0.30, 0.06, on=round_)


def lamp(p: Parts):
    stem = p.u(0.38, 0.48) * p.pick("tall", 1.7, 1.0)
    low, high, h = p.u(0.42, 0.52), p.u(0.20, 0.28), p.u(0.24, 0.30)
    base = np.where((p.u(0.0, 1.0) < 0.5)[:, None], np.array(BARK), np.array(DARK))
    round_ = p.has["round"]
    p.cone((0, 0, -2 * stem), 0.32, 0.26, 0.05, base, edge=0.03)
    p.cone((0, 0, -stem), 0.055, 0.055, stem, base)
    p.cone((0, 0, h), low, high, h, on=~round_, pattern=p.painted(), period=0.16)
    p.ball((0, 0, 0.34), 0.42, on=round_)
    p.ball((0, 0, -2 * stem + 0.09), (0.14, 0.14, 0.09), base)


# ------------------------------------------------------------------------------------ vessels


def mug(p: Parts):
    r, h = p.u(0.38, 0.46), p.u(0.42, 0.50) * p.pick("tall", 1.5, 1.0)
    p.cone((0, 0, 0), r * p.u(0.88, 1.0), r, h, edge=0.03, pattern=p.painted(), period=0.24)
    p.cone((0, 0, 0.10), r - 0.07, r - 0.07, h, WHITE, role=sdf.CARVE)
    p.cone((0, 0, h * 0.45), r - 0.06, r - 0.06, 0.02, BARK, role=sdf.LATE)
    p.ring((0, r + 0.08, 0), 0.24, 0.065, turn=(0, 90, 0))


def teapot(p: Parts):
    r = p.u(0.44, 0.50)
    h = r * p.u(0.78, 0.9) * p.pick("tall", 1.45, 1.0)
    p.ball((0, 0, 0), (r, r, h), pattern=p.painted(), period=0.26)
    p.cone((0, 0, -h * 0.88), r * 0.62, r * 0.6, 0.07, p.shade)
    p.cone((0, 0, h * 0.93), r * 0.55, r * 0.42, 0.06, p.shade)
    p.ball((0, 0, h + 0.11), 0.085, p.shade)
    p.cone((r + 0.16, 0, 0.12), 0.15, 0.07, 0.30, turn=(0, 48, 0))
    p.ring((-r - 0.06, 0, 0.04), 0.24, 0.065, p.shade, turn=(90, 0, 0))


def potion(p: Parts):
    r = p.u(0.40, 0.46)
    neck = p.u(0.16, 0.22) * p.pick("tall", 1.9, 1.0)
    round_ = p.has["round"]
    p.ball((0, 0, 0), r, on=round_)
    p.cone((0, 0, 0), r, r * 0.40, r, on=~round_, edge=0.05)
    p.cone((0, 0, r + neck * 0.7), 0.15, 0.15, neck, GLASS)
    p.cone((0, 0, r + neck * 1.5), 0.20, 0.20, 0.05, GLASS, edge=0.03)
    p.cone((0, 0, r + neck * 1.5 + 0.12), 0.10, 0.13, 0.10, WOOD)
    p.cone((0, 0, -r * 0.95), r * 0.7, r * 0.6, 0.04, p.shade)
    p.ball((r * 0.80, 0, -0.08), (0.10, 0.18, 0.17), CREAM)


def barrel(p: Parts):
    r, h = p.u(0.40, 0.48), p.u(0.50, 0.58) * p.pick("tall", 1.4, 1.0)
    p.cone((0, 0, h / 2), r, r * 0.84, h / 2, edge=0.005, pattern=p.painted(), period=0.26)
    p.cone((0, 0, -h / 2), r * 0.84, r, h / 2, edge=0.005, pattern=p.painted(), period=0.26)
    p.cone((0, 0, h), r * 0.72, r * 0.72, 0.05, role=sdf.CARVE)
    for z in (-0.72, -0.26, 0.26, 0.72):
        radius = r * (1 - 0.16 * abs(z)) + 0.025
        p.cone((0, 0, z * h), radius, radius, 0.045, DARK, edge=0.015)
    p.cone((0, 0, h - 0.07), r * 0.76, r * 0.76, 0.03, p.shade, role=sdf.LATE)


def crate(p: Parts):
    s = p.u(0.46, 0.52)
    h = s * p.pick("tall", 1.5, 1.0)
    p.box((0, 0, 0), (s, s, h), edge=0.01, pattern=p.painted(), period=0.22)
    for z in (-1, 1):
        for side in (-1, 1):
            p.box((side * s, 0, z * (h - 0.06)), (0.06, s + 0.05, 0.075), p.shade)
            p.box((0, side * s, z * (h - 0.06)), (s + 0.05, 0.06, 0.075), p.shade)
    for x, y in _corners(s, s):
        p.box((x, y, 0), (0.07, 0.07, h + 0.02), p.shade)


def chest(p: Parts):
    w, d, h = p.u(0.56, 0.64) * p.pick("long", 1.45, 1.0), p.u(0.36, 0.42), p.u(0.24, 0.30)
    h = h * p.pick("tall", 1.6, 1.0)
    p.box((0, 0, 0), (d, w, h), edge=0.02, pattern=p.painted(), period=0.2)
    p.cone((0, 0, h), d, d, w, turn=(90, 0, 0), edge=0.02)
    for y in (-0.72, 0.72):
        p.cone((0, y * w, h), d + 0.03, d + 0.03, 0.06, GOLD, turn=(90, 0, 0))
        p.box((0, y * w, -0.02), (d + 0.03, 0.06, h), GOLD)
    p.box((0, 0, h), (d + 0.02, w + 0.02, 0.035), GOLD)
    p.box((d + 0.02, 0, h - 0.03), (0.05, 0.11, 0.13), GOLD)
    p.ball((d + 0.07, 0, h - 0.05), 0.04, BLACK)


# -------------------------------------------------------------------------- plants, buildings


def mushroom(p: Parts):
    r, stem = p.u(0.50, 0.60), p.u(0.28, 0.36) * p.pick("tall", 1.8, 1.0)
    cap = p.u(0.34, 0.42)
    p.cone((0, 0, -stem), 0.22, 0.16, stem, CREAM, edge=0.05)
    p.ball((0, 0, 0), (r, r, cap), pattern=p.painted(), second=WHITE, period=0.27)
    p.cone((0, 0, -cap), r * 1.1, r * 1.1, cap * 0.80, role=sdf.CARVE)
    p.cone((0, 0, -cap * 0.13), r * 0.9, r * 0.92, 0.03, CREAM, role=sdf.LATE)
    p.cone((0, 0, -stem * 0.9), 0.21, 0.16, stem * 0.9, CREAM, role=sdf.LATE, edge=0.05)


def tree(p: Parts):
    trunk, r = p.u(0.26, 0.34) * p.pick("tall", 2.0, 1.0), p.u(0.42, 0.50)
    round_ = p.has["round"]
    p.cone((0, 0, -trunk), 0.12, 0.09, trunk, BARK)
    for k, size in enumerate((1.0, 0.80, 0.58)):
        p.cone((0, 0, 0.18 + 0.34 * k), r * size, r * size * 0.30, 0.24, on=~round_, edge=0.03)
    p.cone((0, 0, 1.20), r * 0.34, 0.02, 0.18, on=~round_)
    p.ball((0, 0, 0.42), 0.46, on=round_)
    for k, turn in enumerate(np.linspace(0, 2 * np.pi, 5)[:4]):
        lift = 0.26 + 0.16 * (k % 2)
        p.ball((0.30 * np.cos(turn), 0.30 * np.sin(turn), lift), 0.32, on=round_)


def _windows(p: Parts, x, y, z, size=0.11):
    """Two windows at (x, +-y, z) on the front."""
    for side in (-1, 1):
        p.box((x, side * y, z), (0.02, size, size), GLASS)


def house(p: Parts):
    w, d = p.u(0.50, 0.56), p.u(0.48, 0.60) * p.pick("long", 1.6, 1.0)
    h = p.u(0.36, 0.42) * p.pick("tall", 1.7, 1.0)
    wall = np.where((p.u(0.0, 1.0) < 0.6)[:, None], np.array(CREAM), np.array(WHITE))
    slope = w * np.sqrt(0.5)
    p.box((0, 0, 0), (d, w, h), wall)
    p.box((0, 0, h - 0.03), (d, slope, slope), wall, turn=(45, 0, 0))
    for side in (-1, 1):
        p.box((0, side * (w * 0.54), h + w * 0.46), (d + 0.10, w * 0.84, 0.06),
              turn=(-45 * side, 0, 0))  # fmt: skip
    p.box((d, 0, -h + 0.24), (0.03, 0.13, 0.24), BARK)
    _windows(p, d, 0.31, -h + 0.46)
    p.box((d, 0, h + 0.10), (0.02, 0.11, 0.11), GLASS, on=~p.has["chimney"])
    for side in (-1, 1):
        p.box((0, side * w, 0.02), (0.13, 0.02, 0.11), GLASS)
    p.box((-d * 0.4, 0.24, h + 0.52), (0.11, 0.11, 0.34), RED, on=p.has["chimney"])


def tower(p: Parts):
    r, h = p.u(0.32, 0.38), p.u(0.55, 0.65) * p.pick("tall", 1.5, 1.0)
    p.cone((0, 0, 0), r * 1.12, r * 0.95, h, STEEL, pattern=p.painted(), period=0.3)
    p.cone((0, 0, h), r * 1.15, r * 1.15, 0.09, STEEL)
    p.cone((0, 0, h + 0.42), r * 1.28, 0.01, 0.34)
    p.box((r * 1.02, 0, -h + 0.22), (0.10, 0.13, 0.22), BARK)
    p.box((r * 0.98, 0, h * 0.32), (0.06, 0.07, 0.13), BLACK)
    for side in (-1, 1):
        p.box((0, side * r * 0.98, h * 0.32), (0.07, 0.06, 0.13), BLACK)
    p.cone((0, 0, h + 0.86), 0.025, 0.025, 0.22, DARK, on=p.has["flag"])
    p.box((0.16, 0, h + 0.98), (0.16, 0.025, 0.10), on=p.has["flag"])


# ----------------------------------------------------------------------------------- vehicles


def car(p: Parts):
    d, w, h = p.u(0.74, 0.84), p.u(0.36, 0.40), p.u(0.15, 0.18)
    van = p.has["tall"]
    roof = np.where(van, 0.32, p.u(0.17, 0.20))
    back = np.where(van, 0.56, 0.40)
    p.box((0, 0, 0), (d, w, h), edge=0.07)
    p.box((-0.10, 0, h + roof * 0.8), (back, w - 0.05, roof), edge=0.07)
    for side in (-1, 1):
        p.box((-0.10, side * (w - 0.05), h + roof), (back - 0.09, 0.02, roof * 0.55), GLASS)
    p.box((-0.10 + back - 0.01, 0, h + roof), (0.03, w - 0.13, roof * 0.55), GLASS)
    p.box((-0.10 - back + 0.01, 0, h + roof), (0.03, w - 0.13, roof * 0.45), GLASS)
    for x, y in _corners(d * 0.60, w):
        p.cone((x, y, -h), 0.17, 0.17, 0.08, BLACK, turn=(90, 0, 0), edge=0.02)
        p.cone((x, y, -h), 0.08, 0.08, 0.095, STEEL, turn=(90, 0, 0))
    for side in (-1, 1):
        p.ball((d - 0.01, side * 0.24, 0.03), (0.04, 0.08, 0.07), LIGHT)
        p.box((-d + 0.01, side * 0.26, 0.04), (0.03, 0.07, 0.05), RED)
    p.box((d, 0, -h + 0.05), (0.03, w - 0.06, 0.04), DARK)
    for side in (-1, 1):
        p.box((0, side * 0.13, 0), (d + 0.005, 0.05, h + 0.006), p.contrast, edge=0.07,
              on=p.has["striped"])  # fmt: skip
        p.box((-0.10, side * 0.13, h + roof * 0.8), (back - 0.03, 0.05, roof + 0.006),
              p.contrast, edge=0.07, on=p.has["striped"])  # fmt: skip


def boat(p: Parts):
    d, w, mast = p.u(0.72, 0.82), p.u(0.26, 0.32), p.u(0.52, 0.60) * p.pick("tall", 1.4, 1.0)
    p.ball((0, 0, 0.04), (d, w, 0.44))
    p.box((0, 0, 0.45), (1.2, 0.8, 0.34), role=sdf.CARVE)
    p.box((-0.1, 0, 0.03), (d * 0.72, w * 0.80, 0.04), WOOD, role=sdf.LATE)
    p.cone((0.02, 0, mast), 0.04, 0.03, mast + 0.1, BARK, role=sdf.LATE)
    p.ball((0.10, 0, mast * 1.12), (0.10, 0.40, mast * 0.62), CREAM, role=sdf.LATE,
           pattern=p.painted(), second=p.color, period=0.26)  # fmt: skip
    p.box((-d * 0.66, 0, 0.12), (0.12, w * 0.5, 0.12), role=sdf.LATE, edge=0.04)
    p.box((-0.12, 0, mast * 2 + 0.02), (0.13, 0.02, 0.08), on=p.has["flag"], role=sdf.LATE)


def rocket(p: Parts):
    r, h = p.u(0.26, 0.31), p.u(0.48, 0.56) * p.pick("tall", 1.35, 1.0)
    p.cone((0, 0, 0), r, r, h, WHITE, pattern=p.painted(), second=p.color, period=0.3, edge=0.04)
    p.cone((0, 0, h + 0.26), r, 0.03, 0.27, edge=0.03)
    p.cone((0, 0, -h - 0.06), r * 0.85, r * 0.6, 0.09, DARK)
    for turn in (45, 135, 225, 315):
        a = np.radians(turn)
        x, y = (r + 0.10) * np.cos(a), (r + 0.10) * np.sin(a)
        p.box((x, y, -h + 0.06), (0.16, 0.035, 0.20), turn=(0, 0, turn))
        x, y = (r + 0.22) * np.cos(a), (r + 0.22) * np.sin(a)
        p.box((x, y, -h - 0.10), (0.07, 0.035, 0.14), turn=(0, 0, turn))
    p.ball((r - 0.01, 0, h * 0.45), (0.05, 0.15, 0.15), DARK)
    p.ball((r + 0.02, 0, h * 0.45), (0.05, 0.11, 0.11), GLASS)


# --------------------------------------------------------------------------------- characters


def _hat(p: Parts, z, x=0.0, size=0.24, color=DARK):
    on = p.has["hat"]
    p.cone((x, 0, z), size * 1.5, size * 1.5, 0.035, color, on=on)
    p.cone((x, 0, z + size * 0.75), size * 0.85, size, size * 0.75, color, on=on)


def _scarf(p: Parts, z, large, x=0.0, color=RED):
    on = p.has["scarf"]
    p.ring((x, 0, z), large, 0.085, color, on=on)
    p.box((x + large + 0.03, 0.12, z - 0.17), (0.05, 0.07, 0.17), color, on=on, turn=(0, -12, 0))


def _face(p: Parts, x, z, apart=0.13, size=0.055, iris=BLACK):
    for side in (-1, 1):
        p.ball((x, side * apart, z), size, iris)


def snowman(p: Parts):
    r = p.u(0.40, 0.46)
    p.ball((0, 0, 0), (r, r, r * 0.92), WHITE)
    p.ball((0, 0, r + 0.16), r * 0.72, WHITE)
    head = 2 * r + 0.36
    p.ball((0, 0, head), 0.26, WHITE)
    _face(p, 0.22, head + 0.07, 0.10, 0.045)
    p.cone((0.36, 0, head - 0.02), 0.06, 0.01, 0.14, ORANGE, turn=(0, 90, 0))
    for z in (0.02, 0.20):
        p.ball((r * 0.70, 0, r + z), 0.05, BLACK)
    for side in (-1, 1):
        p.cone((0, side * (r * 0.72 + 0.16), r + 0.30), 0.035, 0.02, 0.26, BARK,
               turn=(-55 * side, 0, 0))  # fmt: skip
    _scarf(p, head - 0.23, 0.20, color=p.color)
    _hat(p, head + 0.20, size=0.20, color=p.color)


def robot(p: Parts):
    w, h = p.u(0.32, 0.38), p.u(0.36, 0.42) * p.pick("tall", 1.45, 1.0)
    head, round_ = h + 0.34, p.has["round"]
    p.box((0, 0, 0), (0.24, w, h), edge=0.05)
    p.box((0, 0, head), (0.22, 0.27, 0.23), STEEL, on=~round_, edge=0.04)
    p.ball((0, 0, head), 0.29, STEEL, on=round_)
    p.cone((0, 0, h + 0.06), 0.10, 0.10, 0.08, DARK)
    _face(p, 0.225, head + 0.05, 0.11, 0.075, LIGHT)
    p.box((0.225, 0, head - 0.12), (0.04, 0.13, 0.03), BLACK)
    p.box((0.235, 0, h * 0.30), (0.03, w * 0.6, h * 0.30), STEEL)
    p.ball((0.27, 0.10, h * 0.36), 0.05, RED)
    p.ball((0.27, -0.10, h * 0.36), 0.05, GOLD)
    for side in (-1, 1):
        p.box((0, side * (w + 0.11), 0.04), (0.09, 0.085, h * 0.78), STEEL, edge=0.04)
        p.ball((0, side * (w + 0.11), -h * 0.78), 0.11)
        p.box((0, side * w * 0.5, -h - 0.16), (0.11, 0.11, 0.20), STEEL)
        p.box((0.05, side * w * 0.5, -h - 0.38), (0.18, 0.14, 0.07), edge=0.04)
    antenna = p.has["antenna"]
    p.cone((0, 0, head + 0.36), 0.03, 0.03, 0.16, DARK, on=antenna)
    p.ball((0, 0, head + 0.54), 0.085, RED, on=antenna)


def _sitting(p: Parts, muzzle, belly=CREAM):
    """Body, limbs, head and face shared by the sitting animals; returns the head's height."""
    r = p.u(0.34, 0.40)
    head = r + 0.42
    p.ball((0, 0, 0), (r * 0.9, r, r * 1.25), pattern=p.painted(), period=0.2)
    p.ball((r * 0.42, 0, -0.02), (r * 0.55, r * 0.62, r * 0.85), belly)
    p.ball((0.04, 0, head), (0.30, 0.34, 0.30), pattern=p.painted(), period=0.2)
    p.ball((0.28, 0, head - 0.08), (0.13, 0.15, 0.11), muzzle)
    p.ball((0.40, 0, head - 0.04), (0.05, 0.06, 0.045), BLACK)
    _face(p, 0.29, head + 0.09, 0.14, 0.05)
    for side in (-1, 1):
        p.cone((0.24, side * 0.20, -r * 1.08), 0.12, 0.11, 0.20, turn=(0, 90, 0), edge=0.10)
        p.cone((0.20, side * (r - 0.02), 0.10), 0.09, 0.08, 0.20, turn=(-25 * side, -50, 0),
               edge=0.07)  # fmt: skip
    _scarf(p, head - 0.30, 0.25, 0.02)
    _hat(p, head + 0.29, 0.02, 0.17)
    return r, head


def bear(p: Parts):
    r, head = _sitting(p, CREAM)
    for side in (-1, 1):
        p.ball((0, side * 0.27, head + 0.25), (0.07, 0.12, 0.12))
    p.ball((-r * 0.9, 0, -r * 0.7), 0.12)


def cat(p: Parts):
    r, head = _sitting(p, WHITE, WHITE)
    for side in (-1, 1):
        p.cone((0.02, side * 0.21, head + 0.32), 0.13, 0.01, 0.15, turn=(-12 * side, 0, 0))
    p.cone((-r * 0.9 - 0.08, 0, -r * 0.5), 0.07, 0.06, 0.34, turn=(0, -28, 0), edge=0.05)


def rabbit(p: Parts):
    r, head = _sitting(p, WHITE, WHITE)
    for side in (-1, 1):
        p.cone((-0.02, side * 0.15, head + 0.50), 0.09, 0.08, 0.30, turn=(-10 * side, 0, 0),
               edge=0.07)  # fmt: skip
        p.box((0.065, side * 0.152, head + 0.51), (0.02, 0.03, 0.20), (0.97, 0.72, 0.75),
              turn=(-10 * side, 0, 0))  # fmt: skip
    p.ball((-r * 0.92, 0, -r * 0.75), 0.15, WHITE)


def duck(p: Parts):
    d, r = p.u(0.54, 0.62), p.u(0.34, 0.40)
    head = r + 0.34
    p.ball((-0.05, 0, 0), (d, r * 1.05, r * 0.9))
    p.ball((0.30, 0, head), 0.27)
    p.cone((0.26, 0, r * 0.85), 0.22, 0.17, 0.20, edge=0.05)
    p.box((0.60, 0, head - 0.06), (0.14, 0.12, 0.045), ORANGE, edge=0.04)
    _face(p, 0.46, head + 0.08, 0.17, 0.055)
    p.cone((-d - 0.06, 0, r * 0.40), 0.16, 0.03, 0.18, turn=(0, -55, 0))
    for side in (-1, 1):
        p.ball((-0.10, side * r, 0.06), (0.32, 0.09, 0.20), p.shade)
        p.box((0.10, side * 0.16, -r * 0.9), (0.16, 0.09, 0.03), ORANGE, edge=0.02)
    _scarf(p, r * 0.95, 0.22, 0.28)
    _hat(p, head + 0.25, 0.28, 0.17)


BUILDERS = {
    "chair": (chair, ("", "armrests", "tall", "striped")),
    "sofa": (sofa, ("", "long", "striped")),
    "bed": (bed, ("", "striped", "tall")),
    "table": (table, ("", "round", "tall", "long")),
    "lamp": (lamp, ("", "tall", "round", "striped")),
    "mug": (mug, ("", "striped", "spotted", "tall")),
    "teapot": (teapot, ("", "striped", "spotted", "tall")),
    "potion": (potion, ("", "round", "tall")),
    "barrel": (barrel, ("", "striped", "tall")),
    "crate": (crate, ("", "striped", "tall")),
    "chest": (chest, ("", "long", "striped", "tall")),
    "mushroom": (mushroom, ("", "spotted", "tall")),
    "tree": (tree, ("", "round", "tall")),
    "house": (house, ("", "chimney", "tall", "long")),
    "tower": (tower, ("", "flag", "striped", "tall")),
    "car": (car, ("", "striped", "tall")),
    "boat": (boat, ("", "striped", "flag", "tall")),
    "rocket": (rocket, ("", "striped", "tall")),
    "snowman": (snowman, ("hat", "scarf")),
    "robot": (robot, ("", "antenna", "round", "tall")),
    "bear": (bear, ("", "hat", "scarf", "striped")),
    "cat": (cat, ("", "hat", "scarf", "striped")),
    "rabbit": (rabbit, ("", "hat", "scarf", "striped")),
    "duck": (duck, ("", "hat", "scarf")),
}
"""Class -> (builder, attributes); every attribute makes an object that looks different."""

FRONTLESS = ("lamp", "barrel", "crate", "mushroom", "tree", "table")
"""Classes that look the same, or nearly, from several sides."""
