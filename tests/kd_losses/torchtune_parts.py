"""A tokenizer and a dataset small enough to run one of torchtune's recipes in seconds."""

import torch
from torch.utils.data import Dataset

VOCAB_SIZE = 40


class Tokenizer:
    pad_id = 0


class Samples(Dataset):
    """Ten samples of different lengths, the first tokens of each without a label."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        generator = torch.Generator().manual_seed(0)
        self.samples = [
            torch.randint(1, VOCAB_SIZE, (7 + i,), generator=generator).tolist() for i in range(10)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        tokens = self.samples[index]
        return {"tokens": tokens, "labels": [-100] * 3 + tokens[3:]}
