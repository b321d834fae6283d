"""jax3d: text and images to 3D assets, many at once, as pure functions in JAX.

The names of `__all__` are what most programs need; each is imported when it is first asked for,
so that `import jax3d` alone does not import JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax3d.making import generate
    from jax3d.manifest import Job
    from jax3d.models.open import open_model
    from jax3d.priors.open import open_critic
    from jax3d.recipe import Recipe
    from jax3d.types import Prompt

__version__ = "0.1.0"

__all__ = ["Job", "Prompt", "Recipe", "generate", "open_critic", "open_model"]


def __getattr__(name: str):
    match name:
        case "generate":
            home = "jax3d.making"
        case "Job":
            home = "jax3d.manifest"
        case "open_critic":
            home = "jax3d.priors.open"
        case "open_model":
            home = "jax3d.models.open"
        case "Recipe":
            home = "jax3d.recipe"
        case "Prompt":
            home = "jax3d.types"
        case _:
            raise AttributeError(f"module 'jax3d' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
