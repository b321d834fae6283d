"""Networks that make a 3D asset by themselves: feed-forward models and native 3D diffusion."""
