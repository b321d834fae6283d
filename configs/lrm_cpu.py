"""The embedded reconstructor, on top of the shipped native generator, for one CPU core: 70 minutes.

jax3d train lrm --config lrm_cpu --out runs/lrm
python benchmarks/reconstruct.py --weights runs/lrm/lrm.safetensors
"""

from jax3d.train.lrm import LrmTraining, PicturesConfig

recipe = LrmTraining(bank=PicturesConfig(each=40, pictures=3, seed=23), steps=7000)
