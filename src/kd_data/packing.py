"""Several samples in one row, by torchtune's own packing."""

from torch.utils.data import Dataset
from torchtune.datasets import PackedDataset
from torchtune.modules.transforms.tokenizers import ModelTokenizer


def pack(dataset: Dataset, tokenizer: ModelTokenizer) -> PackedDataset:
    """Whole samples, as many as fit into ``tokenizer.max_seq_len`` tokens, to each row.

    All samples are tokenised at once. ``collate`` keeps the documents of a row apart.

    Raises:
        ValueError: If the tokenizer has no ``max_seq_len``.
    """
    if tokenizer.max_seq_len is None:
        raise ValueError("packed is true, so tokenizer.max_seq_len must be set")
    return PackedDataset(dataset, max_seq_len=tokenizer.max_seq_len)
