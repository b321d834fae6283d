"""Floating-point operations of a function, counted in its jaxpr.

Matrix products and convolutions count, two operations a multiply-add; element-wise work does not.
These are "model FLOPs": what the computation asks for, whatever the compiler makes of it. A loop
whose length is known counts as often as it runs, one that ends by its data counts once.
"""

import math
from collections.abc import Callable

import jax
from jax.extend import core


def count(fn: Callable, *args) -> int:
    """FLOPs of `fn(*args)`; arguments may be arrays or `jax.ShapeDtypeStruct`s."""
    return _of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _of_jaxpr(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    params = equation.params
    match equation.primitive.name:
        case "dot_general":
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            (contracted, _), _ = params["dimension_numbers"]
            return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)
        case "conv_general_dilated":
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            return 2 * out.size * kernel.size // outputs
        case "scan":
            return params["length"] * _of_jaxpr(params["jaxpr"].jaxpr)
        case "cond":
            return max(_of_jaxpr(branch.jaxpr) for branch in params["branches"])
    return sum(_of_jaxpr(inner) for inner in _inner(params))


def _inner(params):
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
