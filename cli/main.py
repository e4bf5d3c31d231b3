"""The ``meshray`` command: its subcommands, how errors look, and what the exit codes mean.

*Shell (terminal).* Runs in the user's terminal.

1. A failure is one clear message on stderr and an exit code, never a traceback.
2. A subcommand imports what it needs when it runs: ``meshray --help`` is quick.
"""

from __future__ import annotations

from typing import Any

import click

from meshray.cluster_config import ClusterConfigError
from meshray.errors import ClusterNotFoundError, MeshrayError
from meshray.version import __version__

from .clusters import down, schema, up
from .demo_command import demo
from .doctor import doctor
from .events import events
from .exits import EXIT_INTERRUPTED, Failed, NotFound, WrongFile
from .keys import keys
from .listing import list_rows
from .logs import logs
from .status import status
from .timeline import timeline

EPILOG = """
\b
Examples:
  meshray up examples/cluster.yaml       start a two-node cluster on this machine
  meshray status                         nodes, resources, actors, objects, shards
  meshray list tasks --filter state=running
  meshray down                           end it; nothing is left behind

\b
Exit codes: 0 done (also when there was nothing to do), 1 failed, 2 wrong command
line or cluster file, 3 no such cluster, 4 the cluster runs with another
configuration, 130 interrupted.

\b
Environment: MESHRAY_ADDRESS (cluster to talk to), MESHRAY_RUN_ROOT (where run
directories lie), MESHRAY_STATE_DIR (where keys lie), MESHRAY_KEY_FILE (key by
which this user joins clusters of other machines), NO_COLOR.

\b
Completion (bash; zsh and fish alike):
  eval "$(_MESHRAY_COMPLETE=bash_source meshray)"
"""


class Commands(click.Group):
    """The group; turns what meshray raises into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except ClusterConfigError as error:
            raise WrongFile(str(error)) from error
        except ClusterNotFoundError as error:
            raise NotFound(str(error)) from error
        except BrokenPipeError:
            raise
        except (MeshrayError, OSError) as error:
            raise Failed(str(error)) from error


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="meshray %(version)s")
def main() -> None:
    """Start, watch and end meshray clusters."""


for _command in (up, down, status, list_rows, logs, timeline, events, demo, doctor, schema, keys):
    main.add_command(_command)

if __name__ == "__main__":
    main(prog_name="meshray")
