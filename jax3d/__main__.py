"""`python -m jax3d` is the `jax3d` command."""

import sys

from jax3d.cli import main

if __name__ == "__main__":
    sys.exit(main())
