"""Meshes on disk: GLB, OBJ and PLY, and GLB back again (trimesh).

Files are in metres with +y up and the front towards +z, as glTF 2.0 (section 3.4) asks; the world
has +z up and the front towards +x, so axes are permuted: file (x, y, z) = world (y, z, x). The
same mesh gives the same bytes.
"""

import os
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from jax3d.image import linear_to_srgb, srgb_to_linear, to_uint8
from jax3d.render.raster import sample_texture, vertex_normals
from jax3d.types import Mesh

ROUGHNESS = 0.9
"""Of the PBR material: near matt, since the texture holds no highlights to take their place."""

_TO_FILE = [1, 2, 0]
_TO_WORLD = [2, 0, 1]


def write_glb(path: str | os.PathLike, mesh: Mesh) -> None:
    """Write binary glTF 2.0 with normals and a PBR material; the texture (PNG) lies inside."""
    Path(path).write_bytes(glb_bytes(mesh))


def glb_bytes(mesh: Mesh) -> bytes:
    """The content of a GLB file."""
    material = {"metallicFactor": 0.0, "roughnessFactor": ROUGHNESS, "name": "surface"}
    if mesh.texture is not None:
        material["baseColorTexture"] = Image.fromarray(to_uint8(mesh.texture))
        visual = TextureVisuals(uv=mesh.uvs, material=PBRMaterial(**material))
    elif mesh.colors is not None:
        # Vertex colours of glTF are linear; its textures are sRGB.
        visual = ColorVisuals(vertex_colors=_with_alpha(srgb_to_linear(mesh.colors)))
    else:
        visual = TextureVisuals(material=PBRMaterial(**material))
    scene = trimesh.Scene()
    scene.add_geometry(_to_trimesh(mesh, visual), node_name="asset", geom_name="asset")
    return trimesh.exchange.gltf.export_glb(scene, include_normals=True)


def load_glb(path: str | os.PathLike) -> Mesh:
    """Read a GLB of one mesh into world axes, transforms of its nodes applied.

    Raises `ValueError` where the file is no GLB or holds another number of meshes.
    """
    try:
        with open(path, "rb") as file:
            scene = trimesh.load_scene(file, file_type="glb", process=False)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{path} is not a GLB file that can be read ({error})") from error
    parts = [part for part in scene.dump() if isinstance(part, trimesh.Trimesh)]
    if len(parts) != 1:
        raise ValueError(f"{path} holds {len(parts)} meshes; join them into one and export again")
    (part,) = parts
    mesh = Mesh(
        vertices=np.asarray(part.vertices, np.float32)[:, _TO_WORLD],
        faces=np.asarray(part.faces, np.int64),
    )
    image = getattr(getattr(part.visual, "material", None), "baseColorTexture", None)
    if image is not None:
        texture = np.asarray(image.convert("RGB"), np.float32) / 255.0
        return mesh.replace(uvs=np.asarray(part.visual.uv, np.float32), texture=texture)
    if part.visual.kind == "vertex":
        linear = np.asarray(part.visual.vertex_colors, np.float32)[:, :3] / 255.0
        return mesh.replace(colors=linear_to_srgb(linear))
    return mesh


def write_obj(path: str | os.PathLike, mesh: Mesh) -> None:
    """Write `NAME.obj`, and for a textured mesh `NAME.mtl` and `NAME.png` beside it."""
    path = Path(path)
    if mesh.texture is None:
        path.write_text(trimesh.exchange.obj.export_obj(_to_trimesh(mesh, _color_visual(mesh))))
        return
    material = SimpleMaterial(image=Image.fromarray(to_uint8(mesh.texture)), name=path.stem)
    visual = TextureVisuals(uv=mesh.uvs, material=material)
    text, files = trimesh.exchange.obj.export_obj(
        _to_trimesh(mesh, visual), return_texture=True, mtl_name=f"{path.stem}.mtl"
    )
    path.write_text(text)
    for name, content in files.items():
        path.with_name(name).write_bytes(content)


def write_ply(path: str | os.PathLike, mesh: Mesh) -> None:
    """Write binary PLY with a colour (sRGB) per vertex, taken from the texture if there is one."""
    if mesh.texture is not None:
        mesh = mesh.replace(colors=sample_texture(mesh.texture, mesh.uvs))
    Path(path).write_bytes(trimesh.exchange.ply.export_ply(_to_trimesh(mesh, _color_visual(mesh))))


def _to_trimesh(mesh, visual):
    return trimesh.Trimesh(
        vertices=mesh.vertices[:, _TO_FILE],
        faces=mesh.faces,
        vertex_normals=vertex_normals(mesh.vertices, mesh.faces)[:, _TO_FILE],
        visual=visual,
        process=False,
    )


def _color_visual(mesh):
    return None if mesh.colors is None else ColorVisuals(vertex_colors=_with_alpha(mesh.colors))


def _with_alpha(colors):
    return np.pad(to_uint8(colors), [(0, 0), (0, 1)], constant_values=255)
