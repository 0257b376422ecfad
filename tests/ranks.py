"""Processes that are the ranks of one group."""

import os
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
from processes import GUARD, server


def be_rank(rank: int, ranks: int, meeting: str, work: Callable[..., None], args: Any) -> None:
    """Be one of a group's processes, which find one another through the file ``meeting``."""
    log = os.open(f"{meeting}_{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{ranks}"}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    work(rank, *args)
    dist.destroy_process_group()


def on_ranks(ranks: int, meeting: str, work: Callable[..., None], *args: Any) -> None:
    """Call ``work(rank, *args)`` in processes of a server that has imported everything.

    One fails, all end.

    Raises:
        RuntimeError: If one fails, with what it printed; or if nothing happens for too long.
    """
    context = server()
    group = [
        context.Process(target=be_rank, args=(rank, ranks, meeting, work, args), daemon=True)
        for rank in range(ranks)
    ]
    for process in group:
        process.start()
    while (codes := [process.exitcode for process in group]) != [0] * ranks:
        failed = [rank for rank, code in enumerate(codes) if code]
        # Those that ran a moment ago: to wait for none of them would take for ever.
        running = [p.sentinel for p, code in zip(group, codes, strict=True) if code is None]
        if failed or not connection.wait(running, GUARD):
            for process in group:
                process.kill()
            logs = [Path(f"{meeting}_{rank}.log").read_text()[-4000:] for rank in failed or [0]]
            raise RuntimeError(logs[0] if failed else f"the ranks hang\n{logs[0]}")
