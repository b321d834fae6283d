"""A scene of Gaussians of any size and place, brought to where ours are."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jax3d.render.ewa import CUT
from jax3d.types import Gaussians, Mesh

RADIUS = 0.9
"""Of the ball around the origin that a scene fills, metres."""


class Placed(NamedTuple):
    """Gaussians in that ball, and how to get back."""

    gaussians: Gaussians
    centre: Float[np.ndarray, "3"]
    """What is the origin now, in the file's units and the world's axes."""
    scale: float
    """Metres now for one unit of the file."""
    strays: int
    """Gaussians that are left out."""

    def back(self, mesh: Mesh) -> Mesh:
        """A mesh in the file's units."""
        return mesh.replace(vertices=np.float32(mesh.vertices / self.scale + self.centre))

    def there(self, mesh: Mesh) -> Mesh:
        """The inverse of `back`."""
        return mesh.replace(vertices=np.float32(self.scale * (mesh.vertices - self.centre)))


def placed(gaussians: Gaussians, stray: float = 0.001) -> Placed:
    """The Gaussians that are seen, save strays, in the ball.

    Each axis may lose the share `stray` of their centres at either end, before the box of the
    others is widened by a tenth: who then lies outside is a stray. Raises `ValueError` where all
    Gaussians are transparent, or at one place.
    """
    seen = gaussians.opacities >= CUT
    if not seen.any():
        raise ValueError("all of its Gaussians are transparent: there is nothing to mesh")
    means = gaussians.means[seen].astype(np.float64)
    low, high = np.quantile(means, [stray, 1 - stray], axis=0)
    margin = 0.1 * (high - low).max() + np.median(gaussians.scales[seen])
    kept = seen.copy()
    kept[seen] = np.all((means >= low - margin) & (means <= high + margin), axis=-1)
    known = Gaussians(**{name: x[kept] for name, x in vars(gaussians).items()})
    means = known.means.astype(np.float64)
    centre = (means.min(axis=0) + means.max(axis=0)) / 2
    # Two standard deviations belong to the object where they are not a stray's own.
    reach = np.minimum(2 * known.scales.max(axis=-1), margin)
    radius = float((np.linalg.norm(means - centre, axis=-1) + reach).max())
    if not radius > 0:
        raise ValueError("all of its Gaussians are points at one place: there is no surface")
    scale = RADIUS / radius
    moved = known.replace(
        means=np.float32(scale * (means - centre)), scales=np.float32(scale * known.scales)
    )
    return Placed(moved, centre, scale, int(np.sum(seen) - np.sum(kept)))
