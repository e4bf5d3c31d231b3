"""How the command ends: exit codes, and the exceptions that lead to them.

*Pure.*

``click`` itself ends with 0, and with 2 for a wrong command line.
"""

from __future__ import annotations

import click

EXIT_INTERRUPTED = 130


class Failed(click.ClickException):
    """Something went wrong."""

    exit_code = 1


class WrongFile(click.ClickException):
    """The cluster file has mistakes."""

    exit_code = 2


class NotFound(click.ClickException):
    """There is no such cluster."""

    exit_code = 3


class Differs(click.ClickException):
    """The cluster runs with another configuration."""

    exit_code = 4


def differs(name: str, file: str, error: Exception) -> Differs:
    """Return what ends an ``up`` of cluster ``name`` whose file asks for what ``error`` says cannot change."""
    return Differs(f"cluster {name} runs with another configuration, in what cannot change while it runs:\n{error}\n"
                   f"end it first: meshray down {name} && meshray up {file}")
