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
        `recipe` takes the place of the default one before any other option is read; where it has a
        `field`, that names the kind of the recipe's field, whose own options are then read.
      argv: Without the command itself.
      prog: What the command is called.

    Raises:
      SystemExit: The arguments are no options of this kind, which has been told, or ask for help.
      ValueError: The config cannot be had, or a value is out of its bounds.
    """
    default = kind()
    if hasattr(default, "config"):
        default = _chosen(default, argv, prog)
    found = parse(default, argv, prog)
    bounds.check(found)
    return dataclasses.replace(found, argv=tuple(argv)) if hasattr(found, "argv") else found


def parse(default: Any, argv: list[str], prog: str) -> Any:
    """What the arguments make of the default options."""
    return tyro.cli(type(default), args=argv, prog=prog, default=default, config=RULES)


def _chosen(default: Any, argv: list[str], prog: str) -> Any:
    """The default options, of which `--config` and `--field` have chosen the recipe.

    They are found as the parser itself understands the arguments: so neither a prompt, nor the
    value of another option, nor anything after `--` is ever run. What the parser does not know yet
    may be an option of the choices themselves.
    """
    choices = ("--config", "--recipe", "--field")
    if not any(argument.partition("=")[0] in choices for argument in argv):
        return default
    found, _ = tyro.cli(
        type(default),
        args=argv,
        prog=prog,
        default=default,
        return_unknown_args=True,
        add_help=False,
        config=RULES,
    )
    # Imported here: a command without a recipe does not wait for JAX.
    from jax3d import recipe

    chosen = default.recipe
    if found.config is not None:
        chosen = recipe.load(found.config, type(chosen))
    if getattr(found, "field", None) is not None:
        chosen = chosen.with_field(found.field)
    return dataclasses.replace(default, recipe=chosen)
