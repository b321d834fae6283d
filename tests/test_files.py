"""A file is there whole or not at all."""

import pytest

from jax3d.files import whole


@pytest.mark.parametrize(
    "error", [ValueError("bad"), OSError(28, "No space left"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("old", [None, "old"])
def test_what_fails_leaves_the_folder_as_it_was(tmp_path, error, old):
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)

    def fail():
        with whole(path) as file:
            file.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_what_ends_well_takes_the_place_of_the_old(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with whole(tmp_path / "a.txt") as file:
        file.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "new"}


def test_a_missing_folder_is_told_with_the_path_that_was_asked_for(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"none/a\.txt could not be written: No such file"),
        whole(tmp_path / "none" / "a.txt") as file,
    ):
        file.write_text("new")
