"""The rules of CONTRIBUTING.md for words, as far as a machine can hold them."""

import ast
import re
from pathlib import Path

import click

import hbench
from hbench.cli.main import main

PACKAGE = Path(hbench.__file__).parent
SOURCES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

REGISTRY = {"reporting/artifact.py", "reporting/artifacts.py"}
"""The modules below the command line that know commands: what an artifact is, and the list of all."""

NOT_IMPERATIVE = {
    "A", "All", "An", "Another", "As", "At", "Both", "By", "Does", "Each", "Every", "For", "From", "How", "If",
    "In", "It", "Its", "No", "None", "Of", "On", "One", "Only", "Same", "That", "The", "Their", "There", "These",
    "This", "Those", "To", "Was", "What", "When", "Where", "Whether", "Which", "While", "Who", "Whose", "Why",
    "With", "HBenchError", "ValueError",
}  # fmt: skip
THIRD_PERSON = re.compile(r"[A-Z][a-z]*[^s\W]s")
"""A verb as in "Returns" or "Writes", but not as in "Pass"."""
SENTENCE_STARTS = ("Of", "That", "In", "Whether")


def functions(tree):
    """Yield every function of a module that is no property, whose docs name a value."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(each) for each in node.decorator_list}
            if not decorators & {"property", "cached_property"}:
                yield node


def documentation(tree):
    """Yield every docstring and every docs of a field, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def messages(tree):
    """Yield the text of every string that is no documentation, with its line."""
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.lineno, node.value


def is_imperative(docstring):
    first = re.split(r"[^\w']", docstring.strip(), maxsplit=1)[0]
    return first not in NOT_IMPERATIVE and not first.endswith("'s") and not THIRD_PERSON.fullmatch(first)


def sentences(docstring):
    """Return the sentences of a docstring, code and tables apart."""
    return re.split(r"(?<=[.:]) +|\n\s*\n", " ".join(docstring.replace("\n\n", "\0").split()).replace("\0", "\n\n"))


def starts_wrong(docstring):
    return [each for each in sentences(docstring) if each.split(" ", 1)[0].strip() in SENTENCE_STARTS]


def commands(group, name="hbench"):
    """Yield every command below a group, with its name."""
    for each in group.commands.values():
        if isinstance(each, click.Group):
            yield from commands(each, f"{name} {each.name}")
        else:
            yield f"{name} {each.name}", each


def flags():
    """Return every long option of the command line."""
    return {flag for _, each in commands(main) for option in each.params for flag in option.opts if flag[:2] == "--"}


def test_the_rules():
    assert is_imperative("Return x.")
    assert is_imperative("Pass gradients on.")
    assert not is_imperative("Returns x.")
    assert not is_imperative("The x.")
    assert not is_imperative("Student's interval.")
    assert starts_wrong("Return x.\n\nOf several, the first.") == ["Of several, the first."]
    assert starts_wrong("Return x. In a\nfolder y.") == ["In a folder y."]
    assert not starts_wrong("Return x in\nIndiana.")
    assert [text for _, text in messages(ast.parse('"""--a"""\nx = "--b"\ndef f():\n    """--c"""'))] == ["--b"]
    assert {"--out", "--resume", "--device"} <= flags()


def test_docstrings_of_functions_are_imperative():
    found = [
        f"{file}:{function.lineno} {docstring.splitlines()[0]}"
        for file, tree in SOURCES.items()
        for function in functions(tree)
        if (docstring := ast.get_docstring(function)) and not is_imperative(docstring)
    ]
    assert found == []


def test_no_sentence_starts_with_a_dangling_word():
    found = [
        f"{file}:{line} {each}"
        for file, tree in SOURCES.items()
        for line, docstring in documentation(tree)
        for each in starts_wrong(docstring)
    ]
    assert found == []


def test_messages_of_the_library_name_no_flag():
    known = flags()
    found = [
        f"{file}:{line} {text}"
        for file, tree in SOURCES.items()
        if not file.startswith("cli/") and file not in REGISTRY
        for line, text in messages(tree)
        if known & set(re.findall(r"--[a-z][a-z-]*", text))
    ]
    assert found == []


def test_messages_of_a_command_name_its_options():
    """The commands of ``reproduce`` and the common files may name those of any command."""
    offered = {}
    for _, command in commands(main):
        file = command.callback.__module__.removeprefix("hbench.").replace(".", "/") + ".py"
        offered[file] = {flag for each in command.params for flag in each.opts}
    assert {"cli/rca.py", "cli/mos_score.py"} <= set(offered)
    offered.pop("cli/reproduce.py")
    offered["cli/pretrain.py"].add("--model")  # of "hbench train", which it names as the next command
    found = [
        f"{file}:{line} {flag}"
        for file, tree in SOURCES.items()
        if file.startswith("cli/")
        for line, text in [*messages(tree), *documentation(tree)]
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
        if flag not in offered.get(file, flags()) | {"--help"}
    ]
    assert found == []


def test_arguments_that_messages_name_are_options():
    found = [
        f"{file}:{line} {name}"
        for file, tree in SOURCES.items()
        for line, text in messages(tree)
        for name in re.findall(r"(?<!`)`([a-z_]+)[=`]", text)
        if f"--{name.replace('_', '-')}" not in flags()
    ]
    assert found == []


def test_helps_of_options_start_with_their_subject():
    found = [
        f"{name} {option.name}: {option.help}"
        for name, command in commands(main)
        for option in command.params
        if isinstance(option, click.Option) and option.help and starts_wrong(option.help)
    ]
    assert found == []
