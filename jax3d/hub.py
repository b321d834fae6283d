"""Where a checkpoint is: a file or folder here, or a name on the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path


def find(path: str, patterns: Sequence[str], known: str) -> Path:
    """The file or folder itself, or the hub's snapshot under that name.

    Args:
      path: of a file or folder, or `owner/name`.
      patterns: of the files that are fetched, such as "*.json".
      known: what could be there, for the error.

    Raises:
      ValueError: nothing is there, or the hub did not give it.
    """
    if Path(path).exists():
        return Path(path)
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise ValueError(f"{path}: no such file or folder; {known}")
    # Imported here: nothing else needs the hub.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=list(patterns)))
    except Exception as error:  # offline, no such name, no permission: a dozen classes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: no such folder here, and the Hugging Face hub did not give it ({reason}). "
            "Fetch it on a machine with a network and pass its folder"
        ) from error
