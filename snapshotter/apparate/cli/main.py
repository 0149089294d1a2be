"""`apparate`: one program, one module per subcommand, loaded when it is called.

Exit codes are those of the errors (apparate.errors, README): 0 done, 2 wrong input, 3 not found, 4 exists, 5 state does not allow
it, 6 unsupported, 7 bad bytes, 8 a registry's error, 9 not now, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Final, NoReturn

import click

import apparate
from apparate.errors import ApparateError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_INTERRUPTED: Final = 130

COMMANDS: Final = {
    "snapshotter": "Serve containerd's snapshots API.",
    "loader": "Serve the bytes of layers that are loaded while they run.",
    "convert": "Make an accelerated image.",
    "images": "List images and layers of this node: lazy, complete, ordinary or fallback, and why.",
    "why": "Explain one image: why it is loaded on demand, or why not.",
    "complete": "Download the rest of an image.",
    "profile": "Print what containers of an image have touched, as a prefetch list.",
    "fsck": "Check the layers on this node against their digests.",
    "node": "This node: check it, configure its containerd, give it back.",
    "agent": "The chart's pod: prepare a node of a cluster, feed it credentials, say how it is.",
    "config": "Settings: defaults, and what is in force.",
}
"""Name and one line of help; the module of the same name holds `command`."""


class _Lazy(click.Group):
    """Imports a subcommand's module when it is asked for: `apparate images` need not load a converter."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"apparate.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(apparate.__version__, "--version", prog_name="apparate")
def cli() -> None:
    """On-demand loading of container images."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an error of ours is one line on standard error."""
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="apparate", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ApparateError as error:
        print(f"apparate: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, as `| head` does. Python would complain again when it flushes at exit.
        sys.stderr.close()
        return 0
    return 0


def main() -> NoReturn:
    """Entry point of the program."""
    sys.exit(run())
