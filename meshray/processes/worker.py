"""A worker: joins its node and runs what is pushed to it.

*Shell (user code).* Runs in processes forked by the zygote.
"""

from __future__ import annotations

import atexit
import logging
import sys

from meshray import config
from meshray.processes.birth import flush_output
from meshray.session import current
from meshray.session.connect import join
from meshray.session.executor import Executor


def run(name: str, endpoint: str) -> None:
    """Be the worker ``name`` of the node at ``endpoint`` until told to leave, or until the node is gone."""
    sys.setswitchinterval(config.SWITCH_INTERVAL_S)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    session = join(endpoint, kind="worker", name=name)
    current.set_session(session)
    executor = session.executor = Executor(session)
    executor.install_signals()
    session.driving.start()
    try:
        reason = executor.run()
        atexit._run_exitfuncs()
        flush_output()
        session.farewell(reason)
        executor.stay_for_holders()
    finally:
        session.close()
