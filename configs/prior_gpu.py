"""The embedded critic with a larger network and many more images, for one GPU.

    jax3d train prior --config prior_gpu --out runs/prior_gpu

Untested on a GPU so far: the same code as configs/prior_cpu.py with larger numbers. 26 million
images pass through the network; the weights are 11 MB in float16 and need no change of code.
"""

from jax3d.data.prop_bank import BankConfig
from jax3d.nn.props_unet import UNetConfig
from jax3d.train.prior import PriorTraining

recipe = PriorTraining(
    network=UNetConfig(
        widths=(48, 96, 192), blocks=(1, 2, 2), attention=(False, False, True), patch=2
    ),
    turntable=BankConfig(400_000, seed=1),
    photographs=BankConfig(60_000, seed=2, front_heavy=True),
    steps=100_000,
    batch=256,
    warmup=1000,
    ema=0.9995,
    save_every=2000,
)
