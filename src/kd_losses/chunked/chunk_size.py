"""How many tokens are worked on at a time.

Two sizes matter. A *chunk* of tokens is projected by one matrix product per head: the larger, the
faster, but its logits must be stored. A *tile* is the part of a chunk that the loss arithmetic
works on: it makes several passes, so on a CPU a tile should fit into the cache.
"""

import torch

_CPU_CHUNK_BYTES = 48 * 2**20
_GPU_CHUNK_BYTES = 1280 * 2**20
_GPU_CHUNK_SHARE = 1 / 32  # of the device's memory, for devices with less than 40 GiB
_CPU_TILE_BYTES = 3 * 2**19

# Student and teacher logit in fp32; on a GPU also temporaries, which are as large as a chunk there.
_CPU_BYTES_PER_LOGIT = 8
_GPU_BYTES_PER_LOGIT = 32


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Return the tokens of a chunk."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        budget = min(_GPU_CHUNK_BYTES, int(memory * _GPU_CHUNK_SHARE))
        return max(64, budget // (vocab_size * _GPU_BYTES_PER_LOGIT))
    return max(16, _CPU_CHUNK_BYTES // (vocab_size * _CPU_BYTES_PER_LOGIT))


def chunk_bytes(vocab_size: int, device: torch.device, rows: int | None = None) -> int:
    """Return the bytes that the logits of a chunk of ``rows`` tokens take, `chunk_rows` if None."""
    per_logit = _GPU_BYTES_PER_LOGIT if device.type == "cuda" else _CPU_BYTES_PER_LOGIT
    return (rows or chunk_rows(vocab_size, device)) * vocab_size * per_logit


def tile_rows(num_rows: int, vocab_size: int, device: torch.device) -> int:
    """Return the rows of a tile within a chunk of ``num_rows``."""
    if device.type != "cpu":
        return num_rows
    return max(1, _CPU_TILE_BYTES // (4 * vocab_size))
