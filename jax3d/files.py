"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Hand out a path beside `path` to write to, whose file takes its place when the block ends.

    If the block raises, what was written is removed and an older file at `path` stays as it was.
    An `OSError` is raised again, of the same kind, with `path` in its message.
    """
    path = Path(path)
    fresh = path.with_name(f"{path.name}.new")
    try:
        yield fresh
        fresh.replace(path)
    except OSError as error:
        raise type(error)(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        fresh.unlink(missing_ok=True)
