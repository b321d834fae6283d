"""Meshes on disk: GLB, OBJ and PLY, and GLB back again (trimesh).

One object in three files: metres, +y up and the front towards +z, as glTF 2.0 (section 3.4) asks
and as OBJ and PLY, which fix no axes, are read by most. The world has +z up and the front towards
+x, so axes are permuted: file (x, y, z) = world (y, z, x).

One look: an opaque surface of the texture's colours, sRGB, that is fully rough and no metal, since
a texture made from pictures holds the highlights that these showed. glTF asks for vertex colours
in linear light; in OBJ and PLY they are sRGB, as their readers take them.

The same mesh gives the same bytes. A file is there whole or not at all; what cannot be written
raises `OSError`.
"""

import json
import os
import struct
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial

from jax3d.files import whole
from jax3d.image import linear_to_srgb, srgb_to_linear, to_uint8, write_png
from jax3d.render.raster import sample_texture, vertex_normals
from jax3d.types import Mesh

_MATERIAL = {"metallicFactor": 0.0, "roughnessFactor": 1.0, "name": "surface"}

_MTL = """newmtl surface
Ka 1 1 1
Kd 1 1 1
Ks 0 0 0
Ns 0
d 1
illum 1
Pr 1
Pm 0
"""
"""The same for OBJ: what the texture says, matt; the last two are its PBR extension."""

TO_FILE = [1, 2, 0]
"""World axes in the order of a file's."""
TO_WORLD = [2, 0, 1]

_COLOR = "_COLOR"
"""Name of the colours while trimesh has them as an attribute that it does not know."""


def write_glb(path: str | os.PathLike, mesh: Mesh, texture: str | None = None) -> None:
    """Write binary glTF 2.0 with normals and a PBR material.

    The texture (PNG) lies inside, or is the file `texture` beside it, which several may share.
    """
    with whole(path) as file:
        file.write_bytes(glb_bytes(mesh, texture))


def glb_bytes(mesh: Mesh, texture: str | None = None) -> bytes:
    """The content of a GLB file; arguments are those of `write_glb`."""
    attributes, material = {}, dict(_MATERIAL)
    if mesh.texture is not None and texture is None:
        material["baseColorTexture"] = Image.fromarray(to_uint8(mesh.texture))
    elif mesh.colors is not None:
        attributes[_COLOR] = srgb_to_linear(mesh.colors).astype(np.float32)
    visual = TextureVisuals(uv=mesh.uvs, material=PBRMaterial(**material))
    scene = trimesh.Scene()
    part = _to_trimesh(mesh, visual, attributes)
    scene.add_geometry(part, node_name="asset", geom_name="asset")

    def complete(tree):
        _name_colors(tree)
        if texture is not None:
            tree["images"], tree["textures"] = [{"uri": texture}], [{"source": 0}]
            tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}

    return trimesh.exchange.gltf.export_glb(
        scene, include_normals=True, tree_postprocessor=complete
    )


def _name_colors(tree):
    """trimesh would round vertex colours to 8 bits, too few for the dark end of linear light."""
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    if _COLOR in attributes:
        attributes["COLOR_0"] = attributes.pop(_COLOR)


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
        vertices=np.asarray(part.vertices, np.float32)[:, TO_WORLD],
        faces=np.asarray(part.faces, np.int64),
    )
    image = getattr(getattr(part.visual, "material", None), "baseColorTexture", None)
    if image is not None:
        texture = np.asarray(image.convert("RGB"), np.float32) / 255.0
        return mesh.replace(uvs=np.asarray(part.visual.uv, np.float32), texture=texture)
    (geometry,) = scene.geometry.values()
    linear = _linear_colors(geometry.visual)
    return mesh if linear is None else mesh.replace(colors=linear_to_srgb(linear[:, :3]))


def glb_tree(glb: bytes) -> dict:
    """The JSON of a GLB (glTF 2.0, section 4.4); raises `ValueError` where there is none."""
    try:
        magic, version, length, size, kind = struct.unpack_from("<4sIII4s", glb)
        if (magic, version, length, kind) != (b"glTF", 2, len(glb), b"JSON"):
            raise ValueError("its header is another's")
        tree = json.loads(glb[20 : 20 + size])
    except (struct.error, ValueError, RecursionError) as error:
        raise ValueError(f"no GLB file: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError("no GLB file: its JSON is no object")
    return tree


def glb_faces(glb: bytes) -> int:
    """How many triangles a GLB of `write_glb` has; raises `ValueError` where it is none."""
    tree = glb_tree(glb)
    try:
        (part,) = tree["meshes"][0]["primitives"]
        return tree["accessors"][part["indices"]]["count"] // 3
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"no GLB file of one mesh: {error!r}") from None


def with_texture(glb: bytes, texture: str) -> bytes:
    """A GLB whose one texture is a file beside it, with that file under another name.

    Raises `ValueError` where the GLB has no such texture.
    """
    tree = glb_tree(glb)
    images = tree.get("images")
    if not isinstance(images, list) or len(images) != 1 or "uri" not in images[0]:
        raise ValueError("the GLB has no texture beside it")
    images[0]["uri"] = texture
    text = json.dumps(tree, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)  # chunks end at multiples of four bytes, this one by spaces
    (before,) = struct.unpack_from("<I", glb, 12)
    rest = glb[20 + before :]
    header = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON")
    return header + text + rest


def _linear_colors(visual):
    """Vertex colours as they are stored, in [0, 1], or None."""
    if visual.kind == "vertex":
        return np.asarray(visual.vertex_colors, np.float32) / 255.0
    colors = getattr(visual, "vertex_attributes", {}).get("color")
    if colors is None or colors.dtype.kind == "f":
        return colors
    return colors.astype(np.float32) / np.iinfo(colors.dtype).max


def write_obj(path: str | os.PathLike, mesh: Mesh) -> None:
    """Write `NAME.obj`, and for a textured mesh `NAME.mtl` and `NAME.png` beside it.

    The OBJ comes last: where it is, so are the files that it names.
    """
    path = Path(path)
    visual, library = _color_visual(mesh), None
    if mesh.texture is not None:
        visual = TextureVisuals(uv=mesh.uvs, material=SimpleMaterial(name="surface"))
        library = f"{path.stem}.mtl"
        write_png(path.with_suffix(".png"), mesh.texture)
        with whole(path.with_name(library)) as file:
            file.write_text(f"{_MTL}map_Kd {path.stem}.png\n", encoding="utf-8")
    text, _ = trimesh.exchange.obj.export_obj(
        _to_trimesh(mesh, visual), return_texture=True, mtl_name=library, header=None
    )
    with whole(path) as file:
        file.write_text(text, encoding="utf-8")


def write_ply(path: str | os.PathLike, mesh: Mesh) -> None:
    """Write binary PLY with a colour (sRGB) per vertex, taken from the texture if there is one."""
    if mesh.texture is not None:
        mesh = mesh.replace(colors=sample_texture(mesh.texture, mesh.uvs))
    content = trimesh.exchange.ply.export_ply(_to_trimesh(mesh, _color_visual(mesh)))
    with whole(path) as file:
        file.write_bytes(content)


def _to_trimesh(mesh, visual, attributes=None):
    return trimesh.Trimesh(
        vertices=mesh.vertices[:, TO_FILE],
        faces=mesh.faces,
        vertex_normals=vertex_normals(mesh.vertices, mesh.faces)[:, TO_FILE],
        vertex_attributes=attributes,
        visual=visual,
        process=False,
    )


def _color_visual(mesh):
    return None if mesh.colors is None else ColorVisuals(vertex_colors=_with_alpha(mesh.colors))


def _with_alpha(colors):
    return np.pad(to_uint8(colors), [(0, 0), (0, 1)], constant_values=255)
