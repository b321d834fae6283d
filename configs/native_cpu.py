"""The embedded native generator from scratch, for one CPU core.

    jax3d train native --config configs/native_cpu.py --out runs/native
    python benchmarks/native.py --weights runs/native/native.safetensors

Not run to its end so far: the weights that ship came in two segments (docs/native.md). Of one free
core its parts would take 3 minutes for the shapes, 1.5 for the codec and 12 for 3,600 steps.
"""

from jax3d.train.native import NativeTraining, ShapesConfig

recipe = NativeTraining(shapes=ShapesConfig(each=40, seed=11))
