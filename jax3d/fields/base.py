"""The protocol of a 3D representation: five pure functions of its parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Representation(NamedTuple):
    """One asset's 3D representation; batch it with `vmap`.

    Every function is pure and differentiable in `params`.
    """

    init: Callable[..., Any]
    """`init(key) -> params`"""
    render: Callable[..., Any]
    """`render(params, key, Camera[v], Look, size) -> Render[v]`; `size` is static, `(H, W)`.
    `key=None` (static) renders deterministically, with samples at the bins' centres."""
    density: Callable[..., Any]
    """`density(params, x[*n, 3]) -> [*n]`, 1/metre"""
    color: Callable[..., Any]
    """`color(params, x[*n, 3]) -> [*n, 3]`, sRGB albedo in [0, 1]"""
    adapt: Callable[..., Any]
    """`adapt(params, opt_state, stats, step, key) -> (params, opt_state)`, shapes unchanged"""
    tv: Callable[..., Any]
    """`tv(params) -> []`: total variation of the representation's grids, 0 if it has none"""
    bound: float
    """Half side of the cube around the origin that holds the object, metres"""


def no_adapt(params, opt_state, stats, step, key):
    """The `adapt` of representations that never change their layout."""
    del stats, step, key
    return params, opt_state
