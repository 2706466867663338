"""Command lines compared: a result is in the way of another one only if it has the same options."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from hbench.errors import HBenchError

WITHOUT_EFFECT = {
    "cache",
    "device",
    "download",
    "help",
    "out",
    "overwrite",
    "processes",
    "public",
    "push",
    "quiet",
    "resume",
}
"""Parameters that change no result beyond its rounding, by name."""
FORMER = {"lenet": "classifier"}
"""Name of a command today, by that of hbench 0.1."""


def is_repeat(folder: Path) -> bool:
    """Return whether the running command made the result in a folder with the same arguments and options."""
    from hbench.store.provenance import FILE, Provenance

    context = click.get_current_context()
    root = context.find_root()
    try:
        made_by = Provenance.read(folder / FILE).command
        before, now = (parsed(root.command, shlex.split(line or "")[1:]) for line in (made_by, root.obj))
    except (HBenchError, click.ClickException, ValueError):  # damaged, from Python, or of another version
        return False
    return before == now


def parsed(root: click.Command, words: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """Return the name of the command that a command line calls, and its parameters that have an effect, by name.

    Raises:
        ClickException: no such command or option, or a value of another type.
    """
    command, words = leaf(root, words)
    # no callback is called, nothing printed; with the root's settings, since click keeps the help option made here
    context = click.Context(command, resilient_parsing=True, **root.context_settings)
    given, _, _ = command.make_parser(context).parse_args(list(words))
    values = {}
    for each in command.params:
        if each.name and each.name not in WITHOUT_EFFECT:
            value, source = each.consume_value(context, given)
            is_given = source is not ParameterSource.DEFAULT
            values[each.name] = each.type_cast_value(context, value) if is_given else value
    return command.name, values


def today(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with today's name of the command, first, in place of a former one."""
    return [FORMER.get(words[0], words[0]), *words[1:]] if words else []


def leaf(command: click.Command, words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """Return the command that words call, below groups, and its own words.

    Raises:
        ClickException: no such command.
    """
    rest = today(words)
    while isinstance(command, click.Group):
        name = rest.pop(0) if rest else ""
        if name not in command.commands:
            raise click.UsageError(f"no such command: {name}")
        command = command.commands[name]
    return command, rest
