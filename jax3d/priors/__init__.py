"""2D critics: each module makes a `Prior` (see `base`)."""
