"""What `--config` names is run, and nothing else is."""

import pytest

from jax3d import cli, config_files, recipe
from jax3d.fields.gaussians import GaussiansConfig
from jax3d.fields.grid import GridConfig
from jax3d.recipe import Recipe
from jax3d.train.prior import PriorTraining


def exit_code(argv):
    try:
        return cli.main(argv)
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A config that leaves a trace when it is run; the working folder is its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(
        "import pathlib\npathlib.Path('ran').touch()\nraise ValueError('it ran')\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "--", "--config=evil.py"],
        ["generate", "--", "--config", "evil.py"],
        ["generate", "a red chair", "--", "--config", "evil.py"],
        ["generate", "--seed", "1", "--", "--config=evil.py"],
        ["generate", "a --config evil.py"],
        ["generate", "a red chair", "--negative=--config=evil.py"],
        ["generate", "--negative=--config", "evil.py"],
        ["generate", "config", "evil.py"],
        ["generate", "evil.py", "--prior=--config"],
        ["generate", "a red chair", "--config=evil.py", "--config=distil"],
        ["sweep", "--", "--config=evil.py"],
        ["train", "prior", "--out=--config=evil.py"],
    ],
)
def test_what_only_looks_like_a_config_is_not_run(evil, argv):
    cli.parse(argv)
    assert not (evil / "ran").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "--negative", "--config", "evil.py"],
        ["generate", "--negative", "--config=evil.py"],
        ["generate", "--config", "--", "evil.py"],
        ["generate", "a red chair", "--config"],
        ["sample", "a red chair", "--config", "evil.py"],
        ["export", "--config", "evil.py"],
        ["configs", "--config=evil.py"],
        ["--config=evil.py", "generate"],
        ["train", "--config=evil.py", "prior"],
    ],
)
def test_a_config_in_the_wrong_place_is_refused(evil, capsys, argv):
    assert exit_code(argv) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert not (evil / "ran").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "--config=evil.py"],
        ["generate", "a red chair", "--config", "evil.py"],
        ["generate", "--config", "distil", "a red chair", "--config", "evil.py"],
        ["sweep", "--config", "./evil.py", "jobs.csv"],
        ["train", "prior", "--config", "evil.py"],
        ["train", "scorer", "--config=evil.py"],
    ],
)
def test_what_is_the_config_is_run(evil, argv):
    with pytest.raises(ValueError, match=r"config (\./)?evil\.py: ValueError: it ran"):
        cli.parse(argv)
    assert (evil / "ran").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import sys; sys.exit()", "SystemExit"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import sys; sys.exit('no\\n time')", "SystemExit: no time"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("class Odd(BaseException): pass\nraise Odd('x')", "Odd: x"),
        ("recipe = ", "SyntaxError"),
        ("x = '\0'", "null bytes"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise MemoryError", "MemoryError"),
        ("import nowhere_at_all", "ModuleNotFoundError"),
        ("from jax3d.recipe import Recipe\nrecipe = Recipe(colour=1)", "colour"),
        ("", "defines no `recipe` that is a jax3d.recipe.Recipe"),
        ("recipe = None", "defines no `recipe` that is a jax3d.recipe.Recipe"),
        ("from jax3d.recipe import Recipe\nrecipe = Recipe", "defines no `recipe`"),
    ],
)
def test_whatever_a_config_raises_is_told_with_its_name(tmp_path, capsys, text, told):
    path = tmp_path / "mine.py"
    path.write_text(text + "\n")
    assert cli.main(["generate", "a red chair", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"config {path}" in said
    assert told in said


def test_bytes_that_are_no_python_are_told(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_bytes(b"x = '\xff\xfe'\n")
    assert cli.main(["generate", "a red chair", "--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"jax3d: config {path}: SyntaxError")


def test_packaged_recipes_go_by_name():
    assert recipe.load("distil") == Recipe()
    assert isinstance(recipe.load("prior_cpu", PriorTraining), PriorTraining)
    _, options = cli.parse(["generate", "a cat", "--config", "mvdream"])
    assert options.recipe.optimize.camera.group == 4
    _, options = cli.parse(["train", "prior", "--config", "prior_gpu", "--batch", "8"])
    assert (options.recipe.steps, options.recipe.batch) == (100_000, 8)


def test_a_name_that_is_none_is_told_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"config distli: .*nearest: distil.*jax3d configs"):
        recipe.load("distli")
    with pytest.raises(ValueError, match=r"config \.: there is no such file"):
        recipe.load(".")
    with pytest.raises(ValueError, match=r"config nowhere/mine\.py: there is no such file"):
        recipe.load("nowhere/mine.py")
    # A file of a packaged recipe's name is meant where its path is given.
    (tmp_path / "distil").write_text("raise ValueError('mine')\n")
    assert recipe.load("distil") == Recipe()
    with pytest.raises(ValueError, match="mine"):
        recipe.load("./distil")


def test_a_recipe_of_another_kind_is_told():
    with pytest.raises(ValueError, match=r"defines no `recipe` that is a jax3d\.train\.prior"):
        recipe.load("distil", PriorTraining)


def test_configs_lists_every_file_with_its_first_line(capsys):
    assert cli.main(["configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(config_files.packaged())
    assert {"distil", "dreamfusion_sd", "mvdream", "prior_gpu"} <= set(config_files.packaged())
    for line in lines:
        name, about = line.split(maxsplit=1)
        assert about.endswith(".")
        assert f'"""{about}' in config_files.find(name).read_text()


@pytest.mark.parametrize("name", sorted(config_files.packaged()))
def test_every_packaged_recipe_has_its_options_and_the_shorthands(name):
    try:
        kept = recipe.load(name)
    except ValueError:
        pytest.skip("of a training")
    _, options = cli.parse(["generate", "a chair", "--config", name, "--lods=2", "--texture=64"])
    own = options.whole_recipe()
    assert (own.mesh.lods, own.mesh.texture, own.mesh.faces) == (2, 64, kept.mesh.faces)
    assert own.texture == kept.texture
    _, options = cli.parse(["generate", "a chair", "--config", name, "--mesh.lods=1", "--faces=40"])
    own = options.whole_recipe()
    assert (own.mesh.lods, own.mesh.faces) == (1, 40)


def test_options_override_the_config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from jax3d.recipe import KnobValues, Recipe\n"
        "recipe = Recipe(knobs=KnobValues(lr=(3.0,)), negative='a blue chair')\n"
    )
    argv = ["generate", "a cat", "--config", str(path), "--knobs.guidance-scale", "7", "9"]
    _, options = cli.parse(argv)
    assert options.recipe.knobs.lr == (3.0,)
    assert options.recipe.knobs.guidance_scale == (7.0, 9.0)
    assert options.recipe.negative == "a blue chair"


def test_a_field_is_chosen_by_its_name_and_has_its_own_options():
    argv = ["--config", "fast", "--field", "gaussians", "--field.capacity", "64"]
    _, options = cli.parse(["generate", "a cat", *argv, "--field.start", "32"])
    assert options.recipe.field == GaussiansConfig(capacity=64, start=32)
    assert options.recipe.optimize == recipe.load("fast").optimize
    _, options = cli.parse(["sweep", "jobs.csv", "--field=grid"])
    assert options.recipe.field == GridConfig()
    assert exit_code(["generate", "a cat", "--field", "polygons"]) == 2
    assert exit_code(["generate", "a cat", "--field", "grid", "--field.capacity", "64"]) == 2
