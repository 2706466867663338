"""The rooms of hbench/, and who may import whom."""

import ast
from pathlib import Path

import hbench

PACKAGE = Path(hbench.__file__).parent
ROOMS = ["errors", "text", "config", "experiments", "runtime", "core", "models", "store", "training", "evaluation"]
ROOMS += ["reporting", "cli"]
"""Each may import those before it, and itself."""
ONLY_IN = {"click": "cli", "matplotlib": "reporting"}


def module_of(path):
    return ".".join(("hbench", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


SOURCES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source):
    """Yield the name of every module that the source imports, be it in a function or for the type checker only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if node.module == "hbench" or whole in SOURCES else node.module


def room_of(module):
    """Return the first name below hbench; None for other packages, and for hbench itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "hbench" and len(parts) > 1 else None


def against_the_rule(module, imported):
    room = room_of(module)
    if room not in ROOMS:  # hbench and python -m hbench
        return False
    if (only := ONLY_IN.get(imported.partition(".")[0])) is not None:
        return room != only
    other = room_of(imported)
    if other in (None, "__version__"):
        return False
    return other not in ROOMS or ROOMS.index(other) > ROOMS.index(room)


def test_imports_are_seen_wherever_they_stand():
    source = (
        "import click.testing\n"
        "from hbench import errors, load_run\n"
        "if TYPE_CHECKING:\n    from hbench.config import Data\n"
        "def f():\n    from hbench.store import files\n"
    )
    assert [*imports(source)] == [
        "click.testing",
        "hbench.errors",
        "hbench.load_run",
        "hbench.config",
        "hbench.store.files",
    ]


def test_the_rule():
    assert not against_the_rule("hbench.store.run", "hbench.core.sampler")
    assert not against_the_rule("hbench.store.run", "hbench.store.files")
    assert not against_the_rule("hbench.store.run", "hbench")
    assert not against_the_rule("hbench.store.run", "hbench.__version__")
    assert against_the_rule("hbench.store.run", "hbench.evaluate")  # the public API is for others
    assert against_the_rule("hbench.core.sampler", "hbench.store.run")
    assert against_the_rule("hbench.config", "hbench.experiments")
    assert against_the_rule("hbench.runtime.progress", "click")
    assert against_the_rule("hbench.cli.rca", "matplotlib.figure")
    assert not against_the_rule("hbench.__main__", "hbench.cli")


def test_a_room_imports_only_those_before_it():
    found = [(module, imported) for module, path in SOURCES.items() for imported in imports(path.read_text())]
    assert [pair for pair in found if against_the_rule(*pair)] == []


def test_every_module_is_in_a_room():
    listed = {*ROOMS, "__init__", "__main__", "shipped", "py"}  # the last of py.typed
    assert {path.name.partition(".")[0] for path in PACKAGE.iterdir()} - {"__pycache__"} == listed
