"""jax3d: text and images to 3D assets, many at once, as pure functions in JAX."""

__version__ = "0.1.0"
