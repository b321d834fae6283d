"""The gallery's page: names, escaping, the mesh script, and the page itself in a browser."""

import base64
import json
import os
import re

import numpy as np
import pytest
from browser import NEEDS_CHROMIUM, browse

from jax3d import choices, gallery, image
from jax3d.mesh import write_glb
from jax3d.types import Mesh

HOSTILE = [
    '</script><script>document.title = "owned"</script>',
    "<img src=x onerror=\"document.title='owned'\">",
    "../../etc/passwd",
    "a \u2028 line, a quote ' and \" and a \\ backslash & an &amp; entity {{DATA}}",
    "un château 城堡 🏰",
    "",
    "x" * 5000,
    "CON",
]


def write_assets(folder, prompts):
    """A tetrahedron and a strip of four pictures for each prompt."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32) * 0.4
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    assets = []
    for i, prompt in enumerate(prompts):
        name = gallery.slug(prompt, i)
        (folder / name).mkdir()
        mesh = Mesh(corners, faces, colors=np.tile(np.array([0.8, 0.2, 0.1], np.float32), (4, 1)))
        write_glb(folder / name / "mesh.glb", mesh)
        image.write_png(folder / name / "views.png", np.full((16, 64, 3), 0.5))
        assets.append({"folder": name, "prompt": prompt, "seed": i, "metrics": {"psnr": 20.0 - i}})
    return assets


def page_data(page):
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    assert len(found) == 1
    return json.loads(found[0])


def test_slug_is_readable():
    assert gallery.slug("A red chair, with ARMRESTS!", 7) == "0007-a-red-chair-with-armrests"
    assert gallery.slug("un château", 12345) == "12345-un-chateau"


@pytest.mark.parametrize("prompt", HOSTILE)
def test_slug_is_a_safe_name_whatever_the_prompt(prompt):
    name = gallery.slug(prompt, 3)
    assert re.fullmatch(r"0003-[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    assert len(name) <= 53
    assert gallery.slug(prompt, 4) != name


def test_page_holds_the_prompts_as_data_only(tmp_path):
    page = gallery.write_gallery(tmp_path, write_assets(tmp_path, HOSTILE), title="<b>all</b>")
    data = page_data(page)
    assert [asset["prompt"] for asset in data["assets"]] == HOSTILE
    assert data["title"] == "<b>all</b>"
    text = page.read_text(encoding="utf-8")
    assert "owned" in text  # as data
    assert "<img src=x" not in text
    assert "<b>all" not in text
    assert "http" not in re.sub(r'http-equiv="Content', "", text)  # nothing from a network


def test_mesh_script_carries_the_glb(tmp_path):
    assets = write_assets(tmp_path, ["a chair"])
    gallery.write_gallery(tmp_path, assets)
    folder = tmp_path / assets[0]["folder"]
    encoded = re.fullmatch(r'window\.jax3dMesh\("(.*)"\);\n', (folder / "mesh.js").read_text())
    assert base64.b64decode(encoded[1]) == (folder / "mesh.glb").read_bytes()
    assert (tmp_path / "viewer" / "viewer.min.js").stat().st_size > 1e5
    assert "MIT" in (tmp_path / "viewer" / "LICENSE.three").read_text()


def test_an_asset_without_files_or_with_bad_numbers_is_still_listed(tmp_path):
    bare = {"folder": "0000-none", "prompt": "none", "metrics": {"psnr": float("nan"), "clip": 0.5}}
    (asset,) = page_data(gallery.write_gallery(tmp_path / "new", [bare]))["assets"]
    assert asset["numbers"] == {"clip": 0.5}
    assert asset["files"] == []
    assert asset["views"] is False


@pytest.mark.parametrize("folder", ["../up", "a/b", "", ".hidden", "a b", "c:d", 'x"y'])
def test_unsafe_folders_are_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="no safe folder name"):
        gallery.write_gallery(tmp_path, [{"folder": folder, "prompt": "x"}])


def test_folders_are_unique(tmp_path):
    with pytest.raises(ValueError, match="share a folder"):
        gallery.write_gallery(tmp_path, [{"folder": "0-a", "prompt": "x"}] * 2)


@NEEDS_CHROMIUM
def test_page_works_from_disk_in_a_browser(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    assets = write_assets(site, [*HOSTILE[:5], *["a chair"] * 60])
    page = gallery.write_gallery(site, assets, title="sixty-five")
    url = f"{page.as_uri()}#{assets[0]['folder']}"  # a link to an asset opens its 3D view
    dom = browse(url, tmp_path / "profile", "--dump-dom")
    assert "<title>sixty-five</title>" in dom
    assert "owned</" not in re.sub(r"<script.*?</script>", "", dom, flags=re.S)
    assert dom.count('<article class="card"') >= 48
    assert re.search(r'<dialog[^>]*data-state="ready"', dom), re.findall(r"<dialog[^>]*>", dom)
    assert dom.count("<canvas") == 1

    shot = tmp_path / "shot.png"
    browse(url, tmp_path / "profile", f"--screenshot={shot}")
    red, green, blue = np.moveaxis(image.read_image(shot), -1, 0)
    assert ((red > 0.4) & (green < 0.3) & (blue < 0.3)).mean() > 0.01  # the tetrahedron's colour


# Chooses in a page's own controls and leaves the cards for the dump to show.
CHOOSE = """<script>
const select = document.querySelector('select[name="guidance_scale"]');
select.value = "=30";
select.onchange();
const sort = document.getElementById("sort");
sort.value = "#psnr";
sort.onchange();
document.title = [...select.options].map((o) => o.textContent).join("|");
</script></body>"""


@NEEDS_CHROMIUM
def test_five_thousand_assets_are_filtered_by_knob_and_sorted(tmp_path):
    (tmp_path / "site").mkdir()
    assets = [
        {
            "folder": f"{i:04d}-a-chair",
            "prompt": f"chair {i}",
            "metrics": {"psnr": float(5000 - i)},
            "knobs": {"guidance_scale": ("7.5", "30", "100")[i % 3]} if i % 7 else {},
        }
        for i in range(5000)
    ]
    page = gallery.write_gallery(tmp_path / "site", assets)
    page.write_text(page.read_text().replace("</body>", CHOOSE))
    dom = browse(page.as_uri(), tmp_path / "profile", "--dump-dom")
    choices = "Any guidance scale|guidance scale: the recipe's"
    assert f"{choices}|guidance scale: 7.5|guidance scale: 30|guidance scale: 100<" in dom
    shown = [int(n) for n in re.findall(r'title="chair (\d+)"', dom)]
    wanted = [i for i in range(4999, -1, -1) if i % 7 and i % 3 == 1]
    assert shown == wanted[: len(shown)]
    assert 48 <= len(shown) < 400  # cards are made as the page is scrolled
    assert f"{len(wanted)} of 5000 assets" in dom


# Judges with the keyboard; what the page would hand out as choices.json is left in the title.
JUDGE = """<script>
for (const key of %s)
  document.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
document.title = btoa(choicesFile());
</script></body>"""


@NEEDS_CHROMIUM
def test_a_page_from_disk_keeps_choices_and_hands_them_out(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    page = gallery.write_gallery(site, write_assets(site, ["a chair", *HOSTILE[:2], "a mug"]))
    plain = page.read_text()

    def judge(keys):
        page.write_text(plain.replace("</body>", JUDGE % json.dumps(keys)))
        dom = browse(page.as_uri(), tmp_path / "profile", "--dump-dom")
        (tmp_path / choices.NAME).write_bytes(base64.b64decode(re.search("<title>(.*?)<", dom)[1]))
        found = choices.read(tmp_path / choices.NAME)
        folders = [asset["folder"] for asset in page_data(page)["assets"][:3]]
        return [found.get(folder, choices.Choice()).choice for folder in folders], dom

    assert judge(["k", "x", "s"])[0] == ["keep", "reject", "star"]
    again, dom = judge(["ArrowRight", "u", "k"])  # after a reload of the page
    assert again == ["keep", None, "keep"]
    assert dom.count('data-choice="keep"') == 2
    assert "2 kept (0 starred), 0 rejected, 2 to judge" in dom


@NEEDS_CHROMIUM
def test_seeds_side_by_side_and_filters_by_choice_score_and_family(tmp_path):
    (tmp_path / "site").mkdir()
    assets = [
        {
            "folder": f"{i:04d}-x",
            "prompt": ("a chair", "a mug", "a red mug")[i % 3],
            "metrics": {"psnr": float(i)},
            "family": ("chair", "mug", "mug")[i % 3],
        }
        for i in range(9)
    ]
    page = gallery.write_gallery(tmp_path / "site", assets)
    steps = """
    const told = [];
    const set = (id, value) => { $(id).value = value; ($(id).onchange ?? $(id).oninput)(); };
    const note = () => told.push(shown.map((a) => a.folder.slice(3, 4)).join(""));
    const key = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
    key("c"); note();                                   // seeds of "a chair"
    key("k"); key("x"); key("c"); note();               // judged there, and back
    set("status", "none"); note();
    set("status", "kept"); note();
    set("status", ""); set("sort", "#psnr"); set("least", "6"); note();
    const family = document.querySelector('select[name="family"]');
    family.value = "=mug"; family.onchange(); note();
    document.title = told.join(" ");
    """
    page.write_text(page.read_text().replace("</body>", f"<script>{steps}</script></body>"))
    dom = browse(page.as_uri(), tmp_path / "profile", "--dump-dom")
    assert "<title>036 012345678 1245678 0 678 78<" in dom


def test_nothing_is_written_through_links(tmp_path):
    (tmp_path / "site" / "viewer").mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    os.utime(victim, (0, 0))
    assets = write_assets(tmp_path / "site", ["a chair"])
    script = f"{assets[0]['folder']}/mesh.js"
    for name in ("index.html", "index.html.new", "viewer/viewer.min.js", script):
        (tmp_path / "site" / name).symlink_to(victim)
    gallery.write_gallery(tmp_path / "site", assets)
    assert victim.read_text() == "kept"
    assert "window.jax3dMesh" in (tmp_path / "site" / script).read_text()
