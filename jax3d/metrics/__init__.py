"""Measures of what was made."""
