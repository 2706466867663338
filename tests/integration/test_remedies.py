"""Every remedy that a message names is there: options and commands, of all messages and all commands."""

import ast
import inspect
import re
import shlex
from collections import defaultdict
from functools import cache
from pathlib import Path

import click
import pytest
from command_line import refused
from test_docs import commands, options, unknown

import hbench
from hbench.cli.main import OUT_OF_MEMORY, main
from hbench.cli.repeats import leaf
from hbench.cli.words import ARGUMENT, BETWEEN, in_options, options_of
from hbench.reporting.artifacts import ARTIFACTS

PACKAGE = Path(hbench.__file__).parent
FILES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
COMMANDS = list(commands(main))
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*(?![^\"]* -m )")  # those of torchrun stand before -m


def template(node):
    """Return the text of a literal or an f-string, with X in place of its values; both branches of a condition."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=values):
            return "".join(each.value if isinstance(each, ast.Constant) else "X" for each in values)
        case ast.BinOp(left=left, right=right):
            return template(left) + template(right)
        case ast.IfExp(body=body, orelse=other):
            return template(body) or template(other)
    return "X"


def texts(tree):
    """Yield every text of a piece of code but its docstrings."""
    parts = {id(part) for node in ast.walk(tree) for part in ast.iter_child_nodes(node) if is_text(node)}
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if is_text(node) and id(node) not in parts | documents:
            yield template(node)


def is_text(node):
    is_literal = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    is_sum = isinstance(node, ast.BinOp) and (is_text(node.left) or is_text(node.right))
    return is_literal or is_sum


def code_of(command):
    """Return the file and the name of the function of a command."""
    function = inspect.unwrap(command.callback)
    return Path(inspect.getsourcefile(function)), function.__name__


@cache
def named(file):
    """Return what the names of a module stand for: the file and name of an import, or a piece of the module's code."""
    found = {}
    for node in ast.walk(FILES[file]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hbench"):
            path = PACKAGE.parent / (node.module or "").replace(".", "/")
            source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
            found |= {each.asname or each.name: (source, each.name) for each in node.names}
    for node in FILES[file].body:
        for target in getattr(node, "targets", [getattr(node, "target", node)]):
            name = getattr(target, "name", getattr(target, "id", None))
            if name:
                found[name] = node
    return found


def reached(command):
    """Return the messages with arguments in the code that a command can reach.

    A method is reached if its class is, and an attribute of its name: types are not followed.
    """
    file, name = code_of(command)
    todo, seen, methods, attributes, found = [(file, name)], set(), defaultdict(list), set(), set()

    def visit(file, node):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("__"):
                    methods[part.name].append((file, part))
                    if part.name in attributes:
                        visit(file, part)
                else:
                    visit(file, part)
            todo.extend((file, base.id) for base in node.bases if isinstance(base, ast.Name))
            return
        found.update(text for text in texts(node) if ARGUMENT.search(text))
        for each in ast.walk(node):
            if isinstance(each, ast.Name):
                todo.append((file, each.id))
            elif isinstance(each, ast.Attribute) and each.attr not in attributes:
                attributes.add(each.attr)
                for where, method in methods[each.attr]:
                    visit(where, method)

    while todo:
        file, name = todo.pop()
        if (file, name) in seen or file not in FILES:
            continue
        seen.add((file, name))
        what = named(file).get(name)
        if isinstance(what, tuple):
            todo.append(what)
        elif what is not None:
            visit(file, what)
    return found


def known(text, offered):
    return all(found["name"] in offered for found in ARGUMENT.finditer(text))


NOTICES = {
    template(node.args[0])
    for tree in FILES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log.")
}
ELSEWHERE = {
    "X: a state dict does not know its settings: name its `experiment`",  # all commands but sample know them
    "X: was started with another model than the given one: leave `model` out",  # train resumes, and demo does not
    "`device=X`: found X CUDA devices: use `device=cpu`",  # commands without the option are of the CPU
    "`device=X`: no GPU of a Mac can be used here (X): use `device=cpu`",
    "`device=X`: processes cannot share a Mac's GPU: use `device=cpu`",
    "; X would be X times as fast now, with other rounding: `threads=X`",  # end of a notice
    "`device=X`: X processes need a GPU each: use `device=cuda`",
    "the processes read different images: give all of them the same folder as `data_root`",  # pretrain alone reads any
    # the table of data sets names its readers, which the commands that only look a set up never call
    "X: cannot read X (X): give the folder that holds X/raw with `data_root`, or add `download=True`",
}
"""Messages that the commands in whose reach they are never come to."""
MESSAGES = sorted({text for tree in FILES.values() for text in texts(tree) if ARGUMENT.search(text)})


def test_there_are_messages_to_look_at():
    assert len(MESSAGES) > 40
    assert any("already holds results" in text for text in MESSAGES)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_no_message_names_an_option_that_the_command_lacks(command):
    offered = options_of(command)
    shown = {flag for each in command.params if isinstance(each, click.Option) for flag in each.opts}
    for text in MESSAGES:
        said = in_options(text, offered)
        assert set(FLAG.findall(said)) <= shown, (text, said)
        assert "`" not in said
        assert not re.search(r"(: ?|, or|, and| or|,)$|: (,|or )", said.strip()), said  # a whole sentence is left


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_no_message_loses_all_its_remedies(command):
    offered = options_of(command)
    lost = [
        text
        for text in reached(command) - NOTICES - ELSEWHERE
        if text.count(": ") and not any(known(remedy, offered) for remedy in BETWEEN.split(text.rpartition(": ")[2]))
    ]
    assert not lost, [in_options(text, offered) for text in lost]


def test_the_messages_of_a_command_are_found():
    of_rca, of_train, of_report = (reached(main.commands[name]) for name in ("rca", "train", "report"))
    assert any("already holds results" in text for text in of_rca & of_train)
    assert any("needs `directions`" in text for text in of_rca)
    assert any("was started with another model" in text for text in of_train - of_report)


def test_out_of_memory_has_its_own_remedies():
    for name, text in OUT_OF_MEMORY.items():
        assert set(FLAG.findall(text)) <= options(main.commands[name])


def test_commands_in_texts_and_docstrings_exist():
    """Both what is called, as in "hbench classifier digits16", and its options."""
    found = set()
    for tree in FILES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr):
                found |= set(re.findall(r"[\"`](hbench [a-z-]+[^\"`\n]*)[\"`]", template(node)))
    found |= {f"hbench {artifact.command} {artifact.arguments}" for artifact in ARTIFACTS}
    assert len(found) > 30
    assert [(call, unknown(call)) for call in sorted(found) if unknown(call)] == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_examples_of_a_help_are_command_lines(command):
    example = inspect.cleandoc(command.help).split("Example:")[1]
    lines = [line.strip() for line in example.splitlines() if line.strip()]
    assert lines
    for line in lines:
        called, words = leaf(main, shlex.split(line)[1:])
        assert called is command
        context = click.Context(command, **main.context_settings)
        given, rest, _ = command.make_parser(context).parse_args(words)
        assert not rest
        for each in command.params:
            if not isinstance(each.type, click.Path):
                each.type_cast_value(context, each.consume_value(context, given)[0] if each.name in given else None)


@pytest.mark.parametrize(
    ("message", "names", "said"),
    [
        ("a: b `out`, or add `overwrite=True`", {"out"}, "a: b --out"),
        ("a: b `out`, or add `overwrite=True`", {"overwrite"}, "a: add --overwrite"),
        ("a: choose another `out`, go on with `resume=True`, or add `overwrite=True`", {"out", "resume"},
         "a: choose another --out, or go on with --resume"),
        ("a: free some space or choose another `out`", set(), "a: free some space"),
        ("a: give it with `data_root=FOLDER` or set HBENCH_DATA, or add `download=True`", set(), "a: set HBENCH_DATA"),
        ("`device=x`: no such device: use `device=cpu`", {"device"}, "--device x: no such device: use --device cpu"),
        ("a: choose another `cache`", set(), "a: choose another cache"),
        ("no remedy at all", {"out"}, "no remedy at all"),
    ],
)  # fmt: skip
def test_remedies_that_a_command_lacks_are_left_out(message, names, said):
    assert in_options(message, names) == said


def test_a_notice_without_its_remedy_is_a_sentence():
    assert in_options("stopped: go on with `resume=True`", set(), is_notice=True) == "stopped"


def test_a_training_that_is_in_the_way(tmp_path):
    """The remedies of each command for a folder that holds a training."""
    (tmp_path / "experiment.json").touch()
    for line, said in (
        (["train", "digits16", "--model", "mnist16"], "choose another --out, or go on with --resume"),
        (["rca", "mnist16"], "choose another --out, or add --overwrite"),
        (["vram-sweep", "digits16"], "choose another --out, go on with --resume, or add --overwrite"),
    ):
        assert refused(*line, "--out", tmp_path).endswith(f"already holds results: {said}")
