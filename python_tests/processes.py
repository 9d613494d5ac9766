"""Child processes of a test: several that train together, or one that can be killed.

They fork from a server process that has imported the trainer, so they start at once. They draw no
pictures.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
import torch
from tiny_run import draw_no_pictures

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["cac_ext.train.loop", "cac_ext.train.cli.main", "pytest"])


def start(function: Callable, *arguments: Any) -> BaseProcess:
    """Starts ``function(*arguments)``, both picklable, on one thread in a separate process."""
    child = CONTEXT.Process(target=_alone, args=(function, arguments))
    child.start()
    return child


def run_together(
    count: int, function: Callable, *arguments: Any, survivors: Sequence[int] | None = None
) -> list[Any]:
    """Runs ``function(*arguments)`` in each of ``count`` processes, as torchrun starts them.

    Returns the results of ``survivors``; by default, of all.
    """
    survivors = range(count) if survivors is None else survivors
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = CONTEXT.Queue()
    children = [
        CONTEXT.Process(target=_member, args=(rank, count, port, queue, function, arguments))
        for rank in range(count)
    ]
    for child in children:
        child.start()
    results = {}
    try:
        while len(results) < len(survivors):
            rank, result, failure = queue.get(timeout=120)
            assert failure is None, f"process {rank}:\n{failure}"
            results[rank] = result
    finally:
        for child in children:
            child.join(timeout=10 if len(results) == len(survivors) else 0)
            child.kill()
    return [results[rank] for rank in survivors]


def _alone(function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    draw_no_pictures(pytest.MonkeyPatch())
    function(*arguments)


def _member(rank: int, count: int, port: int, queue, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    draw_no_pictures(pytest.MonkeyPatch())
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        queue.put((rank, function(*arguments), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
