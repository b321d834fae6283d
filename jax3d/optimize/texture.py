"""The last stage of DreamGaussian: what was distilled is meshed, and its texture repainted.

Between the stages the host meshes the asset, whatever represents it; then each step renders some
views of the mesh, lets the critic repaint them (`guidance.sdedit`), and draws the texture to them
(Tang et al., arXiv:2309.16653, sections 3.2 and 3.3).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated

import jax

from jax3d import mesh as meshes
from jax3d.bounds import Count, Natural, Positive, Range
from jax3d.fields import textured_mesh
from jax3d.fields.base import Representation
from jax3d.fields.textured_mesh import TexturedMeshConfig
from jax3d.guidance.sdedit import SDEditConfig
from jax3d.mesh import MeshConfig
from jax3d.optimize import asset
from jax3d.optimize.asset import AssetConfig, StageConfig
from jax3d.optimize.stage import Host, Left, Stage, Task
from jax3d.priors.base import Critic
from jax3d.types import AssetState


@dataclass(frozen=True)
class TextureConfig:
    """How an asset is meshed, and the mesh's texture refined."""

    steps: Natural = 50
    size: Annotated[int, Range(1, 4096)] = 128
    """Side of the renders, pixels."""
    views: Count = 4
    """Views rendered a step."""
    rate: Positive = 0.2
    """Learning rate of the texture's logits."""
    supersample: Annotated[int, Range(1, 16)] = 2
    """Samples along a pixel's side."""
    room: Count = 8
    """As `TexturedMeshConfig.room`."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(texture=256))
    """The mesh between the stages, which is the asset's: the recipe's own is not asked."""
    guidance: SDEditConfig = field(default_factory=SDEditConfig)

    @property
    def representation(self) -> TexturedMeshConfig:
        """What the asset is in the end."""
        return TexturedMeshConfig(
            faces=max(self.mesh.faces, 8),
            texture=self.mesh.texture,
            supersample=self.supersample,
            room=self.room,
            rate=self.rate,
        )

    def wider(self) -> "TextureConfig":
        """The same with twice the room in pictures, for when `Render.overflow` is not 0."""
        return dataclasses.replace(self, room=2 * self.room)


def stage(
    before: Representation, critic: Critic, config: TextureConfig, optimize: AssetConfig
) -> Stage:
    """The stage; cameras and looks are those of the distillation, whose steps it counts on from.

    Args:
      before: What the stage before leaves.
      critic: Who repaints.
      config: How.
      optimize: Of the distillation.

    Raises:
      ValueError: The views do not fit a critic that looks at several together.
    """
    own = config.representation
    representation = own.build()
    optimize = dataclasses.replace(
        optimize, views=config.views, stages=(StageConfig(config.steps, config.size),), rates=()
    )
    guidance = config.guidance.build(critic)
    (only,) = asset.distil(representation, critic.prior, guidance, critic.params, optimize)

    def solid(left: Left) -> Left:
        made = meshes.of(before, left.params, config.mesh)
        return Left(textured_mesh.from_mesh(made, own), _taken(left), left.shown)

    def like(left: Left) -> Left:
        params = jax.eval_shape(representation.init, jax.random.key(0))
        return Left(params, _taken(left), left.shown)

    def start(task: Task, left: Left) -> AssetState:
        state = only.start(task, left)
        return state if left.rest is None else state.replace(step=left.rest)

    return only._replace(start=start, before=Host(solid, like))


def _taken(left: Left):
    """The steps of a distillation before this stage; None where there was none."""
    return left.rest.step if isinstance(left.rest, AssetState) else None
