"""From a density field to a textured mesh on disk (host side)."""
