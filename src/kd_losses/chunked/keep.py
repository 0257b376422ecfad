"""Keep a teacher's most probable ids, chunk by chunk."""

import torch

from kd_losses.chunked.chunk_size import chunk_rows
from kd_losses.chunked.rows import LogitRows, finished_tiles
from kd_losses.top_k import TopK


@torch.no_grad()
def keep_top_k(
    rows: LogitRows,
    k: int,
    temperatures: tuple[float, ...] = (1.0,),
    dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
) -> TopK:
    """Return what is to be kept of a teacher's rows; see `TopK.of_logits`.

    Each chunk of tokens is projected, and the next one overwrites its logits: memory grows with
    tokens times ``k``, not with tokens times vocabulary.

    Args:
        rows: N rows of logits.
        k: how many ids to keep; all of them if the vocabulary is smaller.
        temperatures: those at which the mass of the others is wanted.
        dtype: type of the results; None for that of the arithmetic, fp32 or wider.
        chunk_size: tokens projected at a time; ``None`` picks it by vocabulary, device and memory.
    """
    rows, parts = rows.ready(), []
    device = rows.new_buffer(0).device
    size = chunk_size or chunk_rows(rows.vocab_size, device)
    buffer = rows.new_buffer(min(size, len(rows)))
    with torch.autocast(device.type, enabled=False):
        for positions in torch.arange(len(rows), device=device).split(size):
            for _, logits in finished_tiles(rows, positions, buffer):
                parts.append(TopK.of_logits(logits, k, temperatures, dtype))
    ids, log_probs, rest = (
        torch.cat([getattr(one, name) for one in parts]) for name in ("ids", "log_probs", "rest")
    )
    return TopK(ids, log_probs, rest, rows.vocab_size, temperatures)
