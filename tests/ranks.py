"""Processes that are the ranks of one group."""

import os
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch.distributed as dist
from processes import server


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
        if failed:
            for process in group:
                process.kill()
            raise RuntimeError(Path(f"{meeting}_{failed[0]}.log").read_text()[-4000:])
        connection.wait([process.sentinel for process in group if process.exitcode is None])
