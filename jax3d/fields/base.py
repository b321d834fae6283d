"""The protocol of a 3D representation: pure functions of its parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from jax3d.types import Camera, Key, Look, Mesh, Params, Render

Memory = Any
"""A pytree of arrays that is neither trained nor differentiated, such as which of a fixed number
of Gaussians are alive."""


class Taken(NamedTuple):
    """The step that an adaptation follows."""

    step: Any
    """int32 []: steps that the asset has taken before it."""
    progress: Any
    """float []: how much of its run that was, [0, 1]."""
    rates: dict[str, Any]
    """The learning rate that each group of parameters had, the knobs' factor included."""


def no_memory(params: Params) -> Memory:
    """The `memory` of representations that keep none."""
    del params
    return ()


def no_adapt(params, opt_state, memory, gradient, taken, key):
    """The `adapt` of representations that never change their layout."""
    del gradient, taken, key
    return params, opt_state, memory


def no_rates(progress) -> dict[str, Any]:
    """The `rates` of representations that leave them to the config."""
    del progress
    return {}


class Representation(NamedTuple):
    """One asset's 3D representation; batch it with `vmap`.

    Every function but `mesh` is pure, and `render`, `regularise`, `density` and `color` are
    differentiable in `params`.
    """

    init: Callable[[Key], Params]
    """`init(key) -> params`: where optimisation starts."""
    render: Callable[[Params, Key | None, Camera, Look, tuple[int, int]], Render]
    """`render(params, key, Camera[v], Look, size) -> Render[v]`, not yet over a background; `size`
    is static, `(H, W)`. `key=None` (static) renders deterministically."""
    regularise: Callable[[Params], dict[str, Float[Array, ""]]]
    """`regularise(params) -> {name: scalar}`: its own regularisers, each weighed by the knob
    `lambda_<name>`; empty if it has none."""
    bound: float
    """Half side of the cube around the origin that holds the object, metres."""
    density: Callable[[Params, Float[Array, "*n 3"]], Float[Array, "*n"]] | None = None
    """`density(params, x[*n, 3]) -> [*n]`, 1/metre; None if it is no field."""
    color: Callable[[Params, Float[Array, "*n 3"]], Float[Array, "*n 3"]] | None = None
    """`color(params, x[*n, 3]) -> [*n, 3]`, sRGB albedo in [0, 1]; None if it is no field."""
    mesh: Callable[[Params], Mesh] | None = None
    """`mesh(params) -> Mesh`, on the host, for what is a mesh already or meshes itself; None:
    marching cubes on `density` and `color`."""
    memory: Callable[[Params], Memory] = no_memory
    """`memory(params) -> memory` before the first step."""
    adapt: Callable[[Params, Any, Memory, Params, Taken, Key], tuple[Params, Any, Memory]] = (
        no_adapt
    )
    """`adapt(params, opt_state, memory, gradient, taken, key) -> (params, opt_state, memory)` after
    each step, shapes unchanged: densification, pruning."""
    rates: Callable[[Any], dict[str, Any]] = no_rates
    """`rates(progress) -> {group: learning rate}` at a share of the run in [0, 1], of the groups
    (top-level names of the parameters) that want their own; those of the config go before them."""
