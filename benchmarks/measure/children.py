"""Work in a child process, which is ended when its time is over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Where `benchmarks` can be imported.
_ROOT = Path(__file__).parent.parent.parent
#: Seconds, eleven days: the system counts milliseconds in 32 bits.
_FOREVER = 1e6


@dataclass(frozen=True)
class Ended:
    """How a child ended. ``code`` is its return code in `subprocess`; None if its time was over."""

    code: int | None
    output: str = ""
    errors: str = ""


def run_child(module: str, request: Mapping[str, object], timeout: float | None = None) -> Ended:
    """Run ``python -m module REQUEST`` with a JSON request, for ``timeout`` seconds at most.

    When this returns or raises, the child and all processes that it started, such as compilers,
    are gone.
    """
    with subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(request)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        start_new_session=True,  # a group that can be ended as a whole
    ) as child:
        try:
            seconds = _FOREVER if timeout is None else min(max(timeout, 0.0), _FOREVER)
            output, errors = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _end(child)
            return Ended(None)
        except BaseException:  # Ctrl-C does not reach another session
            _end(child)
            raise
    return Ended(child.returncode, output, errors)


def _end(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
