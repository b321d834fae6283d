"""What pyproject.toml cannot say: the recipes of configs/ are part of the package in a wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jax3d*"]), "jax3d.configs"],
    package_dir={"jax3d.configs": "configs"},
)
