"""Micro-batches go to the device one by one."""

import torch

from kd_data import collate
from kd_data.transfer import one_at_a_time

CPU = torch.device("cpu")


def test_the_next_batch_is_on_its_way_and_none_after_it():
    taken = []

    def source():
        for number in range(5):
            taken.append(number)
            yield collate([{"tokens": [number], "labels": [number]}], pad_id=0)

    for number, batch in enumerate(one_at_a_time(source(), CPU)):
        assert batch.inputs["tokens"].item() == number
        assert taken == list(range(min(number + 2, 5)))
    assert list(one_at_a_time([], CPU)) == []
