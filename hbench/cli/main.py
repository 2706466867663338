"""The command line: the group of all commands, and errors and notices in its own words.

Numbers go to stdout, everything else to stderr. Commands import torch only when they run, so that help is instant.
"""

import errno
import io
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import click
from tqdm import tqdm

from hbench import __version__
from hbench.cli.ablations import ablations
from hbench.cli.attributes import attributes
from hbench.cli.benchmark import benchmark
from hbench.cli.classifier import classifier
from hbench.cli.compare import compare
from hbench.cli.demo import demo
from hbench.cli.edit import edit
from hbench.cli.explore import explore
from hbench.cli.export import export
from hbench.cli.fid import fid
from hbench.cli.find import find
from hbench.cli.gradient import gradient
from hbench.cli.import_ import import_
from hbench.cli.mos import mos
from hbench.cli.plan import plan
from hbench.cli.pretrain import pretrain
from hbench.cli.properties import properties
from hbench.cli.quality import quality
from hbench.cli.rca import rca
from hbench.cli.repeats import leaf, today
from hbench.cli.report import report
from hbench.cli.reproduce import reproduce
from hbench.cli.sample import sample
from hbench.cli.train import train
from hbench.cli.train_curves import train_curves
from hbench.cli.traverse import traverse
from hbench.cli.vram_sweep import vram_sweep
from hbench.cli.words import in_options, options_of
from hbench.errors import HBenchError, is_out_of_memory
from hbench.runtime.command import COMMAND
from hbench.runtime.distributed import only_main_process_prints, world_size
from hbench.runtime.streams import open_missing_streams
from hbench.runtime.threads import wait_asleep
from hbench.store.shipped import shipped_runs

OUT_OF_MEMORY = {
    "pretrain": "lower pretrain.batch_size, or choose another --device",
    "train": "lower discovery.batch_size in a new --out, or go on with --resume and --set discovery.strategy=node, "
    'a smaller discovery.memory_budget with "auto", or discovery.checkpoint_blocks=true; "hbench plan EXPERIMENT" '
    "predicts what fits",
}
"""Advice when memory runs out, by command."""
OUT_OF_MEMORY["ablations"] = OUT_OF_MEMORY["gradient"] = OUT_OF_MEMORY["train"]


class Group(click.Group):
    """A group of commands that turns every HBenchError into one line and exit code 1, printed by one process."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command line, the one that provenance records."""
        open_missing_streams()
        wait_asleep()
        args = today(sys.argv[1:] if args is None else args)
        command = shlex.join(["hbench", *map(str, args)])
        with only_main_process_prints():
            return super().main(args, *rest, obj=command, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the work, not of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and turn its errors into one line each."""
        token = COMMAND.set(ctx.obj)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be any bytes
        try:
            return super().invoke(ctx)
        except HBenchError as error:
            message = in_options(" ".join(str(error).split()), options_of(_called(ctx)))
            raise click.ClickException(message) from error
        except click.NoSuchOption as error:
            raise click.UsageError(_setting_meant(error) or error.format_message(), error.ctx) from error
        except click.BadParameter as error:  # its value may have several lines
            raise click.UsageError(" ".join(error.format_message().split()), error.ctx) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            first = (str(error).splitlines() or ["no more is known"])[0]
            general = "choose another --device" if "device" in options_of(_called(ctx)) else "free some memory"
            advice = OUT_OF_MEMORY.get(ctx.invoked_subcommand or "", general)
            raise click.ClickException(f"out of memory: {advice} ({first})") from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever reads the output has seen enough
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(
                f"{where}{error.strerror or error}: check the path, its permissions and the free space"
            ) from error
        finally:
            COMMAND.reset(token)


class Notices(logging.Handler):
    """Handler of the library's notices: each is a line on stderr, above a bar that is being drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        context = click.get_current_context(silent=True)
        options = options_of(context.command) if context else set()
        tqdm.write(in_options(record.getMessage(), options, is_notice=True), file=sys.stderr)


logging.getLogger("hbench").addHandler(Notices())
logging.getLogger("hbench").setLevel(logging.INFO)


def _called(ctx: click.Context) -> click.Command:
    """Return the command of a command line, which may be one of a group; the group of all where there is none."""
    try:
        return leaf(ctx.command, shlex.split(ctx.obj)[1:])[0]
    except click.UsageError:
        return ctx.command


def _setting_meant(error: click.NoSuchOption) -> str:
    """Return the message about an unknown option that is the name of a setting; empty if it is none."""
    from hbench.config import Experiment

    command = error.ctx.command if error.ctx else None
    if not command or "overrides" not in [parameter.name for parameter in command.params]:
        return ""
    if any(option.startswith(error.option_name[:-1]) for option in error.possibilities or ()):
        return ""  # --strategies is near enough to --strategy, and sets what --set would not
    key = {name.lower(): name for name in ("K", "S", "M")}.get(name := error.option_name.lstrip("-").lower(), name)
    key = key.replace("-", "_")
    sections = ["pretrain", "discovery"] if command.name == "pretrain" else ["discovery", "pretrain"]
    for section in [*sections, "data", "model", "diffusion"]:
        fields = getattr(Experiment.model_fields[section].annotation, "model_fields", {})
        if key in fields:
            return f"No such option {error.option_name}: that setting is changed by --set {section}.{key}=VALUE"
    return ""


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hbench")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Find interpretable directions in the h-space of frozen diffusion models, and measure them."""
    command = main.commands[str(ctx.invoked_subcommand)]
    if world_size() > 1 and "processes" not in [parameter.name for parameter in command.params]:
        raise HBenchError(f"{world_size()} processes cannot share hbench {command.name}: start it without torchrun")


for command in (
    demo,
    pretrain,
    import_,
    sample,
    quality,
    plan,
    train,
    find,
    benchmark,
    export,
    train_curves,
    rca,
    attributes,
    compare,
    traverse,
    edit,
    explore,
    classifier,
    fid,
    properties,
    mos,
    vram_sweep,
    ablations,
    gradient,
    reproduce,
    report,
):
    main.add_command(command)


def _name_shipped_runs(command: click.Command) -> None:
    """Name the shipped runs at the end of a command's help, and of its subcommands', where one of them may be given."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _name_shipped_runs(each)
    if command is main or {"run", "runs", "model"} & {parameter.name for parameter in command.params}:
        command.epilog = f"Runs that hbench ships: {', '.join(shipped_runs())}."


_name_shipped_runs(main)
