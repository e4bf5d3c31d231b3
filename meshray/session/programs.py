"""What a worker must know of a job before it runs the job's code: where its program finds its modules.

*Pure* but for the control store requests of its session, and for ``sys.path``. Runs in drivers and workers.

1. The job's row is read once per job, before the first function of that job is loaded. It is there: a driver joins only
   when its node has written it.
2. Entries are appended: what a worker imports already is not replaced by what a program brings.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING

from meshray import errors
from meshray.gcs import tables

if TYPE_CHECKING:
    from meshray.session.session import Session


def python_path() -> tuple[str, ...]:
    """Return where this process finds its modules, so that workers find them too."""
    return tuple(dict.fromkeys(os.path.abspath(entry) for entry in sys.path if os.path.exists(entry or ".")))


class Programs:
    """The programs, by their jobs, whose code this process has run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._prepared = {""}

    def prepare(self, job: str) -> None:
        """Let the modules of the job's program be found. Raise MeshraySystemError when nothing is known of the job."""
        if job in self._prepared:
            return
        table = self._session.tables
        answer = table.ask(lambda done: table.read(tables.JOB, job.encode(), done))
        if answer.error is not None or answer.results[0].value is None:
            reason = "there is no such row" if answer.error is None else answer.error.reason
            raise errors.MeshraySystemError(f"job {job} is not in the job table: {reason}")
        row = tables.decode(answer.results[0].value, tables.JobRow)
        sys.path += [entry for entry in row.python_path if entry not in sys.path]
        importlib.invalidate_caches()
        self._prepared.add(job)
