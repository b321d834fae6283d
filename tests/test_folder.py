"""An OUT folder: claimed once, deleted no further than its own, believed only where it is whole."""

import contextlib
import dataclasses
import json
import os
import socket

import jax
import pytest
from balls import ball_recipe, red_ball
from etils import epath

from jax3d import folder, gallery, lock, record
from jax3d.manifest import Job
from jax3d.optimize.engine import EngineConfig

RECIPE = ball_recipe()
JOBS = [Job("a red chair", 1), Job("a blue mug", 2)]
NAMES = [gallery.slug(job.prompt, k) for k, job in enumerate(JOBS)]


def note(jobs=JOBS, recipe=RECIPE, critic=None, candidates=1, config=None):
    """What `sweep.json` says of a run."""
    opened = recipe.open(red_ball() if critic is None else critic)
    config = EngineConfig() if config is None else config
    return {
        "identity": folder.identity(recipe, opened, jobs, candidates, config),
        "assets": len(jobs),
        "critic": opened.name,
        "versions": {"jax": "1.2.3", "jax3d": "0.1"},
        "folders": [gallery.slug(job.prompt, k) for k, job in enumerate(jobs)],
    }


def held(out, worker, alone=False):
    return folder.held(epath.Path(out), worker, wait=False, alone=alone)


def claimed(out, about, **options):
    return folder.claimed(epath.Path(out), about, **options)


@contextlib.contextmanager
def staging(out):
    """A place to make files in, with the lock that goes with it."""
    with held(out, "main"), folder.staging(epath.Path(out), "main", "x") as local:
        yield local


def claim(out, about=None, overwrite=False, worker="main", going=True):
    with (
        held(out, worker, alone=overwrite),
        folder.claimed(
            epath.Path(out), about or note(), overwrite=overwrite, worker=worker
        ) as begun,
    ):
        if going:
            begun()


def tree(path):
    """Everything in a folder, links and times of files aside."""
    return {
        str(p.relative_to(path)): p.read_bytes() if p.is_file() else None
        for p in path.rglob("*")
        if not p.is_symlink()
    }


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def asset(out, index=0, job=JOBS[0], **changes):
    """A finished asset of one small file."""
    place = out / gallery.slug(job.prompt, index)
    place.mkdir(parents=True, exist_ok=True)
    (place / "views.png").write_bytes(b"a picture")
    about = {
        "index": index,
        "prompt": job.prompt,
        "seed": job.seed,
        "steps": 4,
        "status": "done",
        "knobs": {},
        "critic": "a red ball",
        "model_flops": 1,
        "seconds": {"optimize": 1.0, "finish": 1.0},
        "recipe": record.encode(job.recipe(RECIPE)),
        "metrics": {},
        "errors": {},
        "files": {"views.png": {"bytes": 9, "sha256": ""}},
        "versions": {},
    } | changes
    (place / "asset.json").write_text(record.dumps(about))
    return place


# ---------------------------------------------------------------- whose it is


def test_a_claim_is_written_once_and_found_again(out):
    claim(out)
    first = (out / "sweep.json").read_text()
    claim(out)
    assert (out / "sweep.json").read_text() == first
    assert {p.name for p in out.iterdir()} == {"sweep.json"}


OTHERS = {
    "jobs": {"jobs": JOBS[:1]},
    "jobs, of another seed": {"jobs": [JOBS[0], Job("a blue mug", 3)]},
    "jobs, of another knob": {"jobs": [JOBS[0], Job("a blue mug", 2, knobs={"lr": (2.0,)})]},
    "recipe": {"recipe": ball_recipe(steps=5)},
    "critic": {"critic": red_ball()._replace(digest="other weights")},
    "candidates": {"candidates": 2},
    "early stop": {"config": EngineConfig(patience=3)},
    "early stop, by how much": {"config": EngineConfig(tolerance=0.1)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_by_what_differs(out, name):
    claim(out)
    before = tree(out)
    what = name.split(",")[0]
    with pytest.raises(ValueError, match=rf"holds another run: 2 assets .* in {what}\. .*--overwr"):
        claim(out, note(**OTHERS[name]))
    assert tree(out) == before


@pytest.mark.parametrize(
    "config", [EngineConfig(slots=3), EngineConfig(block=2), EngineConfig(keep=5, writers=1)]
)
def test_how_the_engine_runs_is_no_other_run(out, config):
    claim(out)
    claim(out, note(config=config))


def test_a_critic_that_has_moved_is_the_same(out):
    critic = red_ball()._replace(digest="d")
    claim(out, note(critic=critic))
    claim(out, note(critic=critic._replace(name="moved")))


def test_double_precision_is_another_run(out):
    claim(out)
    with jax.enable_x64(True), pytest.raises(ValueError, match="it differs in x64"):
        claim(out)


def test_another_version_is_told_and_goes_on(out):
    claim(out)
    newer = note() | {"versions": {"jax": "1.2.4", "jax3d": "0.1"}}
    with pytest.warns(UserWarning, match=r"begun with jax 1\.2\.3 and goes on with 1\.2\.4"):
        claim(out, newer)


UNREADABLE = ["", "{", "null", "{}", "[]", '{"identity": 3}', '{"identity": "a string, as once"}']


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_claim_that_cannot_be_read_is_told_and_repaired(out, content):
    asset(out)
    (out / "sweep.json").write_text(content)
    (out / "2023-photos").mkdir()
    (out / "2023-photos" / "me.jpg").write_text("mine")
    before = tree(out)
    with pytest.raises(ValueError, match=r"out/sweep\.json .*repair it by --overwrite"):
        claim(out)
    assert tree(out) == before
    claim(out, overwrite=True)
    assert set(tree(out)) == {"sweep.json", "2023-photos", "2023-photos/me.jpg"}
    claim(out)


def test_a_claim_is_whole_or_not_there(out):
    out.mkdir(parents=True)
    assert folder._create(epath.Path(out / "sweep.json"), "first", "a")
    assert not folder._create(epath.Path(out / "sweep.json"), "second", "b")
    assert (out / "sweep.json").read_text() == "first"
    assert [p.name for p in out.iterdir()] == ["sweep.json"]


def test_of_two_that_claim_at_once_the_second_is_refused(out, monkeypatch):
    # Both have looked and found nothing; then the other is quicker.
    create = folder._create

    def slower(path, text, worker):
        create(path, record.dumps(note(jobs=JOBS[:1])), "other")
        return create(path, text, worker)

    monkeypatch.setattr(folder, "_create", slower)
    with pytest.raises(ValueError, match="holds another run: 1 assets"):
        claim(out)
    assert json.loads((out / "sweep.json").read_text())["assets"] == 1


# ---------------------------------------------------------------- a start that fails


def fail(out, about=None, overwrite=False, going=False):
    with contextlib.suppress(KeyError):
        with (
            held(out, "main", alone=overwrite),
            folder.claimed(
                epath.Path(out), about or note(), overwrite=overwrite, worker="main"
            ) as begun,
            folder.checkpoints(epath.Path(out), "main", 2),
        ):
            if going:
                begun()
            raise KeyError
        pytest.fail("it has not failed")


def test_a_start_that_fails_claims_nothing(out):
    fail(out)
    assert not out.exists()


def test_a_start_that_fails_leaves_what_was_there(out):
    out.mkdir(parents=True)
    (out / "mine.txt").write_text("mine")
    fail(out)
    assert tree(out) == {"mine.txt": b"mine"}


def test_a_start_that_fails_overwrites_nothing(out):
    claim(out)
    asset(out)
    (out / "checkpoints" / "main" / "1").mkdir(parents=True)
    (out / "ledger.csv").write_text("index")
    (out / "choices.json").write_text("{}")
    before = tree(out)
    fail(out, note(jobs=JOBS[:1]), overwrite=True)
    assert tree(out) == before


def test_a_run_that_fails_later_keeps_its_claim(out):
    fail(out, going=True)
    assert json.loads((out / "sweep.json").read_text())["assets"] == 2
    fail(out)
    assert (out / "sweep.json").exists()


def test_a_start_that_fails_beside_a_living_worker_keeps_the_claim(out):
    with held(out, "process-1-of-2"):
        fail(out)
        assert (out / "sweep.json").exists()


# ---------------------------------------------------------------- what is deleted


HOSTILE = ["/tmp/x", "..", ".", "", "../elsewhere", "elsewhere", "0000-a/../../elsewhere", "a b",
           "0000-", "0000-A", "000-a", "sweep.json", None, 3, ["0000-a"], "0000-a\n"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_but_folders_of_assets_is_overwritten(out, tmp_path, name):
    asset(out)
    folders = [NAMES[0], name, str(tmp_path / "elsewhere")]
    (out / "sweep.json").write_text(json.dumps(note(jobs=JOBS[:1]) | {"folders": folders}))
    for place in (tmp_path / "elsewhere", out / "elsewhere", out / "a b"):
        place.mkdir()
        (place / "kept.txt").write_text("kept")
    (out / "choices.json").touch()  # of the assets that are lost
    claim(out, overwrite=True)
    assert {p.name for p in out.iterdir()} == {"sweep.json", "elsewhere", "a b"}
    for place in (tmp_path / "elsewhere", out / "elsewhere", out / "a b"):
        assert (place / "kept.txt").exists()


def test_links_are_removed_and_not_followed(out, tmp_path):
    claim(out, note(jobs=[Job("a red chair", 7), Job("a red chair", 8)]))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.txt").write_text("kept")
    inner = asset(out)
    (inner / "link").symlink_to(tmp_path / "elsewhere")
    (out / "0001-a-red-chair").symlink_to(tmp_path / "elsewhere")
    claim(out, overwrite=True)
    assert {p.name for p in out.iterdir()} == {"sweep.json"}
    assert (tmp_path / "elsewhere" / "kept.txt").exists()


@pytest.mark.parametrize("name", [*NAMES, "checkpoints", "locks", "staging", "replaced", "viewer"])
def test_nothing_is_written_through_links(out, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    out.mkdir()
    (out / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"out/{name} is a link, and not followed"):
        claim(out)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert [p.name for p in out.iterdir()] == [name]


def test_links_in_place_of_files_are_replaced(out, tmp_path):
    place = asset(out)
    victim = tmp_path / "victim"
    for name in ("views.png", "asset.json"):
        victim.write_text("kept")
        (place / name).unlink()
        (place / name).symlink_to(victim)
    with (
        held(out, "main"),
        folder.staging(epath.Path(out), "main", "x") as local,
    ):
        made = asset(local)
        folder.publish(made, epath.Path(place))
    assert victim.read_text() == "kept"
    assert not (place / "asset.json").is_symlink()


# ---------------------------------------------------------------- one process at a time


def test_a_second_run_is_refused(out):
    with (
        held(out, "main"),
        pytest.raises(ValueError, match=f"written to by process {os.getpid()} on"),
    ):
        claim(out)
    claim(out)


def test_workers_share_a_folder_and_refuse_to_be_overwritten(out):
    with held(out, "process-0-of-2"):
        claim(out, worker="process-1-of-2")
        with pytest.raises(ValueError, match=r"in use by process-0-of-2; stop them"):
            claim(out, overwrite=True)
    claim(out, overwrite=True)


def test_a_dead_worker_hinders_nobody(out):
    claim(out)
    dead = lock.Holder(socket.gethostname(), lock._place(), 2**22 - 1, "1", 0.0, "x")
    for worker in ("main", "process-0-of-2"):
        (out / "locks").mkdir(exist_ok=True)
        (out / "locks" / f"{worker}.json").write_text(json.dumps(dead._asdict()))
        (out / "staging" / worker / "0000-a").mkdir(parents=True)
    claim(out, note(jobs=JOBS[:1]), overwrite=True)
    assert not (out / "locks" / "main.json").exists()
    assert not (out / "staging" / "main").exists()


@pytest.mark.parametrize("worker", ["", "..", "a/b", "/tmp/x", ".hidden", "a\nb", "x" * 101])
def test_a_worker_is_no_path(out, worker):
    with pytest.raises(ValueError, match="worker is"):
        claim(out, worker=worker)
    assert not out.exists()


# ---------------------------------------------------------------- its assets


def find(out, job=JOBS[0], index=0):
    wanted = record.asked(job.prompt, job.seed, job.recipe(RECIPE))
    return folder.find(epath.Path(out / gallery.slug(job.prompt, index)), wanted)


def test_an_asset_is_found(out):
    assert find(out) is None
    asset(out)
    assert find(out).damaged == []


@pytest.mark.parametrize("content", ["", '{"prompt": "a re', "null", "{}", "[]", "3"])
def test_a_record_that_cannot_be_read_is_told(out, content):
    (asset(out) / "asset.json").write_text(content)
    with pytest.warns(UserWarning, match=r"0000-a-red-chair/asset\.json .*; its asset is made an"):
        assert find(out) is None


FOREIGN = {
    "prompt": {"prompt": "a red car"},
    "seed": {"seed": 9},
    "knobs": {"recipe": record.encode(Job("a", knobs={"lr": (3.0,)}).recipe(RECIPE))},
    "optimize": {"recipe": record.encode(RECIPE.with_steps(9))},
    "negative": {"recipe": record.encode(dataclasses.replace(RECIPE, negative="x"))},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_anothers_record_is_told(out, name):
    asset(out, **FOREIGN[name])
    with pytest.warns(UserWarning, match=rf"asset\.json is another asset's: .*{name}.*made anew"):
        assert find(out) is None


@pytest.mark.parametrize("harm", ["gone", "truncated", "longer", "empty"])
def test_a_damaged_file_is_noticed(out, harm):
    path = asset(out) / "views.png"
    match harm:
        case "gone":
            path.unlink()
        case "truncated":
            os.truncate(path, 4)
        case "longer":
            path.write_bytes(b"a picture.")
        case "empty":
            path.write_bytes(b"")
    assert find(out).damaged == ["views.png"]


def test_records_are_those_that_can_be_read(out):
    asset(out)
    (asset(out, 1, JOBS[1]) / "asset.json").write_text("{")
    assert list(folder.records(epath.Path(out), [*NAMES, "0002-nothing"])) == NAMES[:1]


def test_publishing_replaces_and_removes_its_own_and_nothing_else(out):
    place = asset(out, files={n: {"bytes": 9, "sha256": ""} for n in ("views.png", "old.png")})
    (place / "old.png").write_text("old")
    (place / "notes.txt").write_text("mine")
    with (
        held(out, "main"),
        folder.staging(epath.Path(out), "main", "x") as local,
    ):
        made = asset(local, files={})
        (made / "views.png").unlink()
        folder.publish(made, epath.Path(place))
    assert {p.name for p in place.iterdir()} == {"asset.json", "notes.txt"}
    assert {p.name for p in out.iterdir()} == {NAMES[0]}


def test_a_failed_publication_is_noticed(out, monkeypatch):
    place, replace = asset(out), os.replace

    def full(source, target):
        if os.fspath(target).endswith("asset.json"):
            raise OSError(28, os.strerror(28))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with (
        held(out, "main"),
        folder.staging(epath.Path(out), "main", "x") as local,
    ):
        made = asset(local)
        (made / "views.png").write_bytes(b"a new picture")
        with pytest.raises(OSError, match="No space left"):
            folder.publish(made, epath.Path(place))
    assert find(out).damaged == ["views.png"]
    assert {p.name for p in out.iterdir()} == {NAMES[0]}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda place: (place / "asset.json").unlink(), "holds no asset: there is no asset.json"),
        (lambda place: (place / "asset.json").write_text("{"), r"asset\.json cannot be read"),
        (lambda place: (place / folder.PARAMS).unlink(), r"params\.safetensors is missing"),
        (lambda place: (place / folder.PARAMS).write_bytes(b"x"), "does not match its checksum"),
    ],
)
def test_an_asset_is_loaded_whole_or_refused(out, harm, message):
    field = RECIPE.field.build()
    params = field.init(jax.random.key(0))
    place = asset(out)
    folder.save_params(params, place / folder.PARAMS)
    about = record.read(place / "asset.json")
    (place / "asset.json").write_text(record.dumps(about | {"files": record.files_of(place)}))
    assert jax.tree.map(lambda x: x.shape, folder.load_asset(place).params) == jax.tree.map(
        lambda x: x.shape, params
    )
    harm(place)
    with pytest.raises(ValueError, match=message):
        folder.load_asset(place)
