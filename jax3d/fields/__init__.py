"""3D representations: each module makes a `Representation` (see `base`)."""
