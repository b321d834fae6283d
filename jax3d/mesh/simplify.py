"""Fewer faces by quadric edge collapse (Garland and Heckbert, 1997), validity kept."""

import threading

import fast_simplification
import numpy as np

from jax3d.mesh.extract import compact, signed_volume
from jax3d.types import Mesh

_HASTE = (7, 5, 3, 6, 4, 8)
"""Growth rates of the collapse's threshold, in the order tried; 7 is the library's own."""

_ONE_AT_A_TIME = threading.Lock()
"""The library keeps its mesh in globals between its calls."""


def simplify(mesh: Mesh, faces: int) -> Mesh:
    """Collapse edges until at most `faces` are left; a mesh within the budget is returned as is.

    A closed mesh stays closed and keeps a volume: now and then a collapse pinches two sheets
    together, and another order of collapses is tried. Raises `ValueError` where none of them keeps
    the mesh whole, as for a budget too small for its shape, or for a budget below 4. Colours and
    textures are not carried over.
    """
    if faces < 4:
        raise ValueError(f"mesh.faces is {faces}; no closed surface has fewer than 4")
    if len(mesh.faces) <= faces:
        return mesh
    closed = is_closed(mesh)
    for haste in _HASTE:
        result = _collapse(mesh, faces, haste)
        if not 0 < len(result.faces) <= faces:
            continue
        if not closed or (is_closed(result) and signed_volume(result) > 0):
            return result
    raise ValueError(
        f"the mesh of {len(mesh.faces)} faces cannot be brought down to {faces} and stay closed; "
        "raise mesh.faces, or lower mesh.resolution"
    )


def is_closed(mesh: Mesh) -> bool:
    """Whether each directed edge has its opposite exactly once (manifold, closed, consistent)."""
    a, b, c = mesh.faces.astype(np.int64).T
    start, end = np.concatenate([a, b, c]), np.concatenate([b, c, a])
    count = len(mesh.vertices)
    edges, opposite = np.sort(start * count + end), np.sort(end * count + start)
    return bool(np.array_equal(edges, opposite) and (np.diff(edges) > 0).all())


def _collapse(mesh, budget, haste):
    with _ONE_AT_A_TIME:
        vertices, faces = fast_simplification.simplify(
            mesh.vertices.astype(np.float64),
            mesh.faces.astype(np.int32),
            target_count=budget,
            agg=haste,
        )
    # Two faces on the same corners are a fold without volume.
    _, of_face, count = np.unique(
        np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True
    )
    kept = faces[count[of_face.reshape(-1)] == 1]
    return compact(Mesh(vertices.astype(np.float32), kept.astype(np.int64)))
