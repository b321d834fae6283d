"""Ways of turning a critic into a gradient: each module makes a `Guidance` (see `base`)."""
