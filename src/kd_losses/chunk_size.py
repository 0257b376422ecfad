"""How many tokens are worked on at a time.

Two sizes matter. A *chunk* of tokens is projected by one matrix product per head: the larger, the
faster, but its logits must be stored. A *tile* is the part of a chunk that the loss arithmetic
works on: it makes several passes, so on a CPU a tile should fit into the cache.
"""

import torch
from torch import Tensor

_CPU_CHUNK_BYTES = 56 * 2**20
_GPU_CHUNK_SHARE = 1 / 40
_CPU_TILE_BYTES = 3 * 2**20


def chunk_rows(vocab_size: int, head: Tensor) -> int:
    """Return the tokens of a chunk: student and teacher logits of that many are stored."""
    if head.device.type == "cuda":
        memory = torch.cuda.get_device_properties(head.device).total_memory
        budget = int(memory * _GPU_CHUNK_SHARE)
    else:
        budget = _CPU_CHUNK_BYTES
    return max(32, budget // (2 * vocab_size * head.element_size()))


def tile_rows(num_rows: int, vocab_size: int, device: torch.device) -> int:
    """Return the rows of a tile within a chunk of ``num_rows``."""
    if device.type != "cpu":
        return num_rows
    return max(1, _CPU_TILE_BYTES // (4 * vocab_size))
