"""What a game engine asks of a mesh beside its looks: a hull for collisions, and a size.

Convex hulls by Qhull (Barber et al. 1996) through SciPy.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.spatial import ConvexHull, QhullError

from jax3d.mesh.extract import compact
from jax3d.mesh.simplify import simplify
from jax3d.types import Mesh


def convex_hull(mesh: Mesh, faces: int) -> Mesh:
    """A convex mesh of at most so many faces that holds the whole mesh, closed, without colours.

    Where the hull itself has more, it is that of fewer points, grown about its centre until all of
    the mesh is inside. Raises `ValueError` where the mesh is flat, or for a budget below 4.
    """
    # The hull of a closed mesh's corners has no more faces than the mesh.
    hull = _hull(simplify(_hull(mesh.vertices), faces).vertices)
    return _grown(hull, mesh.vertices)


def _hull(points: Float[np.ndarray, "n 3"]) -> Mesh:
    points = np.asarray(points, np.float64)
    try:
        found = ConvexHull(points)
    except QhullError as error:
        raise ValueError("a flat mesh has no hull that encloses anything") from error
    a, b, c = np.moveaxis(points[found.simplices], 1, 0)
    outwards = np.einsum("fi,fi->f", np.cross(b - a, c - a), found.equations[:, :3]) > 0
    faces = np.where(outwards[:, None], found.simplices, found.simplices[:, ::-1])
    return compact(Mesh(points.astype(np.float32), faces.astype(np.int64)))


def _grown(hull: Mesh, points: Float[np.ndarray, "n 3"]) -> Mesh:
    """The hull scaled about its centre until it holds the points."""
    center = hull.vertices.mean(axis=0, dtype=np.float64)
    a, b, c = np.moveaxis(hull.vertices[hull.faces] - center, 1, 0)
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    reach = (np.asarray(points, np.float64) - center) @ normal.T
    scale = max(1.0, float((reach.max(axis=0) / np.einsum("fi,fi->f", normal, a)).max()))
    return hull.replace(vertices=(center + scale * (hull.vertices - center)).astype(np.float32))


class Placement(NamedTuple):
    """From the field's metres to those of the real object."""

    scale: float
    origin: Float[np.ndarray, "3"]
    """The field's point that becomes the origin."""

    def apply(self, mesh: Mesh) -> Mesh:
        """The mesh where it is to stand."""
        return mesh.replace(vertices=self.scale * (mesh.vertices - self.origin))

    def undo(self, mesh: Mesh) -> Mesh:
        """A placed mesh where the field has it."""
        return mesh.replace(vertices=mesh.vertices / self.scale + self.origin)


def placement(mesh: Mesh, height: float | None) -> Placement:
    """That by which a mesh has a height, metres, and stands on the middle of its base.

    With None it stays as and where it is.
    """
    if height is None:
        return Placement(1.0, np.zeros(3, np.float32))
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    middle = (low + high) / 2
    origin = np.array([middle[0], middle[1], low[2]], np.float32)
    return Placement(height / float(high[2] - low[2]), origin)
