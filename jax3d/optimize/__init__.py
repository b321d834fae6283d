"""The optimisation of assets: one asset, many assets, checkpoints."""
