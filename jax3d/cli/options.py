"""From arguments to the options of a command."""

import dataclasses
from typing import Any

import tyro

from jax3d import bounds

RULES = (tyro.conf.AvoidSubcommands,)


def read(kind: type, argv: list[str], prog: str) -> Any:
    """The options that the arguments spell.

    Args:
      kind: The dataclass of a command's options. Where it has a `config`, that names a file whose
        `recipe` takes the place of the default one before any other option is read.
      argv: Without the command itself.
      prog: What the command is called.

    Raises:
      SystemExit: The arguments are no options of this kind, which has been told, or ask for help.
      ValueError: The config cannot be had, or a value is out of its bounds.
    """
    default = kind()
    named = _config(default, argv, prog) if hasattr(default, "config") else None
    if named is not None:
        # Imported here: a command without a recipe does not wait for JAX.
        from jax3d import recipe

        loaded = recipe.load(named, type(default.recipe))
        default = dataclasses.replace(default, recipe=loaded)
    found = parse(default, argv, prog)
    bounds.check(found)
    return dataclasses.replace(found, argv=tuple(argv)) if hasattr(found, "argv") else found


def parse(default: Any, argv: list[str], prog: str) -> Any:
    """What the arguments make of the default options."""
    return tyro.cli(type(default), args=argv, prog=prog, default=default, config=RULES)


def _config(default: Any, argv: list[str], prog: str) -> str | None:
    """What `--config` names, as the parser itself understands the arguments.

    So neither a prompt, nor the value of another option, nor anything after `--` is ever run. What
    the parser does not know yet may be an option of the config's own choices.
    """
    if not any(argument.partition("=")[0] in ("--config", "--recipe") for argument in argv):
        return None
    found, _ = tyro.cli(
        type(default),
        args=argv,
        prog=prog,
        default=default,
        return_unknown_args=True,
        add_help=False,
        config=RULES,
    )
    return found.config
