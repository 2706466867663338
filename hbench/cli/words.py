"""The library's messages in the words of the command line: options in place of arguments, no advice that is not there.

A message ends with its remedies, after the last colon: "already holds results: choose another `out`, or add
`overwrite=True`". A command that has no such option does not name that remedy.
"""

import re
from collections.abc import Set as AbstractSet

import click

ARGUMENT = re.compile(r"`(?P<name>[a-z_]+)(?:=(?P<value>[^`]*))?`")
"""An argument in a message: `name` or `name=value`."""
VERBS = "add|choose|give|go|leave|lower|measure|name|pass|put|resume|set|take|train|use|wait"
"""Words that begin a remedy."""
BETWEEN = re.compile(rf",? or (?:else )?|; |, (?=(?:{VERBS})\b)")
"""Text between two remedies."""


def options_of(command: click.Command) -> set[str]:
    """Return the names of a command's options, as the library calls its arguments."""
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {name.lstrip("-").replace("-", "_") for each in options for name in each.opts}


def in_options(message: str, options: AbstractSet[str], *, is_notice: bool = False) -> str:
    """Return a message of the library with options instead of arguments, without remedies that need an unknown one.

    Args:
        message: text with arguments in backticks.
        options: names of the options that there are.
        is_notice: leave the remedies out if none remains; those of an error then stay, without option.
    """
    problem, colon, advice = message.rpartition(": ")
    if not _known(advice, options):
        left = [remedy for remedy in BETWEEN.split(advice) if _known(remedy, options)]
        if left:
            advice = f"{', '.join(left[:-1])}{', or ' if len(left) > 1 else ''}{left[-1]}"
        elif is_notice and colon:
            colon = advice = ""
    return ARGUMENT.sub(lambda found: _option(found, options), f"{problem}{colon}{advice}")


def _known(text: str, options: AbstractSet[str]) -> bool:
    return all(found["name"] in options for found in ARGUMENT.finditer(text))


def _option(found: re.Match[str], options: AbstractSet[str]) -> str:
    name, value = found["name"], found["value"]
    word = f"--{name.replace('_', '-')}" if name in options else name.replace("_", " ")
    return word + (f" {value}" if value not in (None, "True") else "")
