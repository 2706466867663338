"""Write the documents that follow from the code; ``python docs/generate.py`` writes all, a test compares them.

They are docs/api.md from the docstrings, docs/schema/ from the record classes, the programs in docs/chain.md from
docs/examples/, and the README's table of commands from the helps of the commands and the registry of artifacts.
"""

import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click

import hbench
from hbench.cli.main import main as hbench_command
from hbench.evaluation import evaluate
from hbench.reporting.artifacts import ARTIFACTS
from hbench.store.records import Record

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
COMMANDS = "<!-- Commands: written by docs/generate.py -->\n", "<!-- End of the commands -->\n"
"""Lines around the README's table."""
CHAIN = DOCS / "chain.md"
PROGRAM = re.compile(r"(<!-- (\w+\.py): written by docs/generate\.py -->\n).*?(<!-- End of \2 -->\n)", re.DOTALL)
"""A program of docs/examples in docs/chain.md, with the lines around it."""


def main() -> None:
    """Write all generated files, and remove schemas of records that are gone."""
    pages = generated()
    for old in (DOCS / "schema").glob("*.json"):
        if old not in pages:
            old.unlink()
    for path, text in pages.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def generated() -> dict[Path, str]:
    """Return the text of every generated file."""
    schemas = {
        DOCS / "schema" / f"{record.__name__}.json": json.dumps(record.json_schema(), indent=2) + "\n"
        for record in records()
    }
    return {DOCS / "api.md": api(), CHAIN: chain(), README: readme(), **schemas}


def records() -> list[type[Record]]:
    """Return every class of JSON files in hbench."""
    for module in pkgutil.walk_packages(hbench.__path__, "hbench."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    found = [each for each in _subclasses(Record) if not inspect.isabstract(each)]
    return sorted((each for each in found if each.__module__.startswith("hbench.")), key=lambda each: each.__name__)


def _subclasses(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)


def readme() -> str:
    """Return the README, with a new table of commands."""
    before, rest = README.read_text(encoding="utf-8").split(COMMANDS[0])
    _, after = rest.split(COMMANDS[1])
    return before + COMMANDS[0] + commands() + COMMANDS[1] + after


def chain() -> str:
    """Return docs/chain.md, with its programs as they are now."""

    def shown(found: re.Match[str]) -> str:
        before, name, after = found.groups()
        return f"{before}```python\n{(DOCS / 'examples' / name).read_text(encoding='utf-8')}```\n{after}"

    return PROGRAM.sub(shown, CHAIN.read_text(encoding="utf-8"))


def commands() -> str:
    """Return a table of all commands: their helps, and the items of the paper that they make."""
    lines = ["| command | what it does | in the paper |", "|---|---|---|"]
    for context in _contexts(click.Context(hbench_command, info_name="hbench", **hbench_command.context_settings)):
        path = context.command_path.removeprefix("hbench ")
        items = [artifact.item for artifact in ARTIFACTS if f"{artifact.command} ".startswith(f"{path} ")]
        usage = " ".join([context.command_path, *_arguments(context.command)])
        shown = ", ".join(item for item in dict.fromkeys(items) if item)
        lines.append(f"| `{usage}` | {context.command.get_short_help_str(limit=100)} | {shown} |")
    return "\n".join(lines) + "\n"


def _contexts(parent: click.Context) -> Iterator[click.Context]:
    """Yield the context of every command below a group, in the group's order."""
    assert isinstance(parent.command, click.Group)
    for name in parent.command.list_commands(parent):
        context = click.Context(parent.command.commands[name], info_name=name, parent=parent)
        if isinstance(context.command, click.Group):
            yield from _contexts(context)
        elif not context.command.hidden:
            yield context


def _arguments(command: click.Command) -> list[str]:
    return [each.human_readable_name for each in command.params if isinstance(each, click.Argument)]


def api() -> str:
    """Return the reference of the Python API, from signatures and docstrings."""
    parts = [
        "# Python API",
        "",
        "Generated from the docstrings by `python docs/generate.py`. Images are float32 [B, C, H, W] in [-1, 1].",
        "",
        "## hbench",
        "",
    ]
    for name in hbench.__all__:
        if name != "evaluate":
            parts += _entry(f"hbench.{name}", getattr(hbench, name))
    parts += ["## hbench.evaluate", "", _text(evaluate), ""]
    for name in evaluate.__all__:
        parts += _entry(f"hbench.evaluate.{name}", getattr(evaluate, name))
    return "\n".join(parts).rstrip() + "\n"


def _entry(name: str, value: Any) -> list[str]:
    lines = [f"### {name}", "", "```python", f"{name}{_signature(value)}", "```", "", _text(value), ""]
    if inspect.isclass(value):
        for member, function in vars(value).items():
            if not member.startswith("_") and _is_documented(function):
                called = getattr(value, member)
                text = _text(function if isinstance(function, property) else called)
                shown = member if isinstance(function, property) else f"{member}{_signature(called, bound=True)}"
                lines += [f"- `{shown}`: {_first_sentence(text)}"]
        lines.append("")
    return lines


def _is_documented(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)


def _signature(value: Any, bound: bool = False) -> str:
    if inspect.isclass(value):  # nobody makes one by hand
        return ""
    try:
        signature = inspect.signature(value)
    except ValueError:
        return "(...)"
    parameters = [p for name, p in signature.parameters.items() if not (bound and name == "self")]
    text = str(signature.replace(parameters=parameters))
    text = re.sub(r"(?:[a-z_]+\.)+([A-Za-z_]+)", r"\1", text)  # modules in front of types
    return re.sub(r"(: |-> |\| )'([^']*)'", r"\1\2", text)  # quotes around the names of types


def _text(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


if __name__ == "__main__":
    main()
