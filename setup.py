"""Shim for tools that still call setup.py; the metadata live in pyproject.toml."""

from setuptools import setup

setup()
