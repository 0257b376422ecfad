import json
from collections import Counter

import pytest
import tiny
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, DistributedSampler
from torchtune.config import instantiate
from torchtune.datasets import PackedDataset

from hf_models import HFTokenizer
from kd_data import mixture


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> HFTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(directory)
    return HFTokenizer(directory, max_seq_len=64)


def numbered(name, length):
    return [(name, i) for i in range(length)]


def labels_in_order(dataset):
    return [int(label) for row in dataset for label in row["labels"] if label != -100]


def mix(datasets, weights, **options):
    return list(mixture(None, datasets, weights, **options))


@pytest.mark.parametrize("weights", [[1, 1], [0.7, 0.3], [9, 1], [1, 0], [0.2, 0.5, 0.3]])
def test_every_beginning_has_the_right_proportions(weights):
    datasets = [numbered(i, 50 + 10 * i) for i in range(len(weights))]
    samples = mix(datasets, weights, num_samples=400)
    assert len(samples) == 400
    for m in range(1, 401):
        counts = Counter(name for name, _ in samples[:m])
        for i, weight in enumerate(weights):
            assert abs(counts[i] - m * weight / sum(weights)) < len(weights) / 2 + 0.5


def test_a_dataset_is_exhausted_before_it_repeats():
    samples = mix([numbered("a", 7), numbered("b", 100)], [1, 1], num_samples=100)
    a = [i for name, i in samples if name == "a"]
    b = [i for name, i in samples if name == "b"]
    assert len(a) == len(b) == 50
    passes = [a[start : start + 7] for start in range(0, 49, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len(set(map(tuple, passes))) > 1, "each pass is meant to have an order of its own"
    assert len(set(b)) == 50


def test_everything_once_when_the_weights_are_the_lengths():
    datasets = [numbered("a", 30), numbered("b", 10)]
    samples = mix(datasets, [30, 10])
    assert sorted(samples) == sorted(datasets[0] + datasets[1])


def test_seed_fixes_the_order():
    datasets = [numbered("a", 20), numbered("b", 20)]
    first = mix(datasets, [2, 1], seed=3)
    assert first == mix(datasets, [2, 1], seed=3)
    other = mix(datasets, [2, 1], seed=4)
    assert first != other
    # The seed orders the samples, never the proportions.
    assert [name for name, _ in first] == [name for name, _ in other]


def test_a_longer_mixture_begins_like_a_shorter_one():
    datasets = [numbered("a", 6), numbered("b", 9), numbered("c", 4)]
    weights = [0.5, 0.2, 0.3]
    assert mix(datasets, weights, num_samples=300)[:80] == mix(datasets, weights, num_samples=80)


def test_ranks_share_the_mixture():
    dataset = mixture(None, [numbered("a", 8), numbered("b", 8)], [3, 1])
    shares = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False)
        loader = DataLoader(dataset, sampler=sampler, batch_size=4, collate_fn=list)
        shares.append([sample for batch in loader for sample in batch])
    assert [sample for pair in zip(*shares, strict=True) for sample in pair] == list(dataset)


def test_from_a_config(tmp_path, tokenizer):
    (tmp_path / "pairs.json").write_text(json.dumps([{"prompt": "A", "completion": " name"}]))
    tiny.save_texts(tmp_path / "texts.jsonl")
    node = {
        "_component_": "kd_data.mixture",
        "datasets": [
            {
                "_component_": "kd_data.prompt_completion_dataset",
                "data_files": str(tmp_path / "pairs.json"),
            },
            {
                "_component_": "torchtune.datasets.text_completion_dataset",
                "source": "json",
                "data_files": "${texts}",
            },
        ],
        "weights": [0.25, 0.75],
        "num_samples": 8,
    }
    cfg = OmegaConf.create({"texts": str(tmp_path / "texts.jsonl"), "dataset": node})
    dataset = instantiate(cfg.dataset, tokenizer)
    texts = [tokenizer.decode(sample["tokens"]) for sample in dataset]
    assert texts.count("A name<|im_end|>") == 2
    assert len(set(texts)) == 7
    cfg.dataset.packed = True
    packed = instantiate(cfg.dataset, tokenizer)
    assert isinstance(packed, PackedDataset)
    assert len(packed) < len(dataset)
    assert labels_in_order(packed) == labels_in_order(dataset)


@pytest.mark.parametrize(
    ("lengths", "weights", "options", "words"),
    [
        ([], [], {}, "a mixture of 0 datasets"),
        ([3, 3], [1], {}, "2 datasets has 1 weights"),
        ([3, 3], [1, -1], {}, "at least 0"),
        ([3, 3], [1, float("nan")], {}, "at least 0"),
        ([3, 3], [0, 0], {}, "one above 0"),
        ([3, 0], [1, 1], {}, r"datasets\[1\] is empty"),
        ([3], [1], {"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_bad_arguments(lengths, weights, options, words):
    with pytest.raises(ValueError, match=words):
        mixture(None, [numbered("a", length) for length in lengths], weights, **options)


def test_a_dataset_that_cannot_be_built_is_named(tmp_path, tokenizer):
    good = {"_component_": "kd_data.lm_eval_task", "task": "x", "include_path": str(tmp_path)}
    for key, value, words in [
        ("include_path", "/nowhere", r"datasets\[1\]: include_path: no such directory: /nowhere"),
        ("tusk", "y", r"datasets\[1\]: .*unexpected keyword argument 'tusk'"),
        ("_component_", "kd_data.absent", r"datasets\[1\]: Error loading 'kd_data.absent'"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            mixture(tokenizer, [numbered("a", 2), good | {key: value}], [1, 1])
        assert "\n" not in str(error.value)


def test_packed_datasets_are_refused(tokenizer):
    packed = PackedDataset([{"tokens": [1], "labels": [1]}], max_seq_len=2)
    with pytest.raises(ValueError, match=r"datasets\[0\] is packed; set packed for the mixture"):
        mixture(tokenizer, [packed], [1])
