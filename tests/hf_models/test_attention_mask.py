"""The mask of packed rows, dense and for FlexAttention, against torchtune's and against attention
itself."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask, flex_attention
from torchtune.datasets import PackedDataset
from torchtune.modules import attention_utils
from torchtune.modules.attention_utils import create_block_causal_mask

from hf_models.torchtune_decoder.attention_mask import block_mask, dense_mask, with_mask
from kd_data import collate

BLOCK = 128  # positions of FlexAttention's blocks


def packs_of(lengths, row):
    samples = [{"tokens": [1] * n, "labels": [1] * n} for n in lengths]
    return list(PackedDataset(samples, max_seq_len=row))


def inputs_of(samples):
    return dict(collate(samples, pad_id=0).inputs)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_a_dense_mask_is_torchtunes(lengths):
    packs = packs_of(lengths, 12)
    mask = with_mask(inputs_of(packs))["mask"]
    assert torch.equal(mask, create_block_causal_mask([pack["seq_lens"] for pack in packs]))


@settings(max_examples=50)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_every_position_sees_itself_so_no_row_of_attention_is_nan(lengths):
    """Padding too, and rows that only fill up a batch."""
    packs = packs_of(lengths, 12)
    inputs = inputs_of([*packs, packs[0] | {"blank": True}])
    assert (inputs["documents"][-1] == -1).all()
    assert with_mask(inputs)["mask"].diagonal(dim1=1, dim2=2).all()


def test_rows_that_are_not_packed_need_no_mask():
    inputs = inputs_of([{"tokens": [1, 2], "labels": [1, 2]}])
    assert with_mask(inputs).keys() == {"tokens"}


def test_a_batch_itself_grows_with_its_length_alone():
    def size(row):
        batch = collate(packs_of([3] * 100, row), pad_id=0)
        return sum(tensor.nbytes for tensor in batch.tensors().values()) / 300

    assert size(300) == pytest.approx(size(30), rel=0.1)


def test_a_cpu_takes_the_dense_one_wherever_it_stands(monkeypatch):
    """Beside a GPU, torchtune says for the whole process that FlexAttention is there."""
    monkeypatch.setattr(attention_utils, "_SUPPORTS_FLEX_ATTENTION", True)
    mask = with_mask(inputs_of(packs_of([2, 3], 6)))["mask"]
    assert isinstance(mask, torch.Tensor)


@pytest.fixture(scope="module")
def documents():
    """Two rows of three blocks: documents within a block, over its edge, and padding."""
    packs = packs_of([100, 60, 128, 30, 200, 90, 40], 3 * BLOCK)
    documents = collate(packs, pad_id=0).documents["decoder"]
    assert documents.shape == (2, 3 * BLOCK)
    assert (documents == -1).any()
    return documents


def test_a_block_mask_says_what_the_dense_one_says(documents):
    dense, blocks = dense_mask(documents), block_mask(documents)
    num_rows, length = documents.shape
    materialised = create_mask(blocks.mask_mod, num_rows, None, length, length, "cpu")
    assert torch.equal(materialised[:, 0], dense)
    needed = dense.view(num_rows, 3, BLOCK, 3, BLOCK).any(4).any(2)
    assert torch.equal(blocks.to_dense()[:, 0].bool(), needed)
    assert not needed.tril().equal(torch.ones(3, 3).tril().bool().expand(2, 3, 3)), "some are left"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_both_give_the_same_attention(documents):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, documents.shape[1], 16, generator=generator, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, dense_mask(documents)[:, None])
    actual = flex_attention(q, k, v, block_mask=block_mask(documents))
    assert expected.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
