"""Renderers: from parameters and rays to pixels."""
