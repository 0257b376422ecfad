from pathlib import Path

import families
import pytest
import tiny
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from official_tasks import CASES, ROOT, TRUTHFULQA, write_official_tasks, write_task
from omegaconf import OmegaConf
from torch.nn import functional as F
from torchtune.config import instantiate
from torchtune.datasets import PackedDataset
from transformers import AutoTokenizer, LlamaForCausalLM

from hf_models import HFTokenizer
from kd_data import collate, lm_eval_task
from kd_data.datasets.task_texts import TaskTexts
from kd_data.squad_metrics import compute_exact, compute_f1, provide_squad_metrics

IGNORE = -100
QUESTIONS = [{"q": f"{i} and {i}?", "a": str(2 * i), "gold": i % 2} for i in range(1, 5)]
GENERATE = {
    "output_type": "generate_until",
    "training_split": "train",
    "validation_split": "validation",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}.",
    "generation_kwargs": {"until": ["\n"]},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CHOICES = GENERATE | {
    "output_type": "multiple_choice",
    "doc_to_choice": ["even", "odd"],
    "doc_to_target": "gold",
    "generation_kwargs": None,
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("official")
    write_official_tasks(directory)
    provide_squad_metrics()
    return directory


def load(directory: Path, name: str):
    return TaskManager(include_path=str(directory), include_defaults=False).load(name)["tasks"][
        name
    ]


def texts_of(directory, split="train", rows=QUESTIONS, **task):
    write_task(directory, "local", rows, **task)
    return list(TaskTexts(load(directory, "local"), split))


def pair(prompt, completion):
    return {"prompt": prompt, "completion": completion}


@pytest.mark.parametrize("name", CASES)
def test_official_task(official, name):
    """The text, and that lm_eval itself scores it, calls it right and shows it as an example."""
    task = load(official, name)
    texts = list(TaskTexts(task, "train"))
    assert texts[0] == pair(CASES[name].prompt, CASES[name].completion)
    assert len(texts) == 2

    task.build_all_requests()
    for number, text in enumerate(texts):
        requests = [r for r in task.instances if r.doc_id == number]
        doc = requests[0].doc
        if task.OUTPUT_TYPE == "multiple_choice":
            scored = [request.args for request in requests]
            best = [scores(task, doc, len(scored), i) for i in range(len(scored))]
            assert scored[best.index(1)] == (text["prompt"], text["completion"])
            assert sum(best) == 1
        else:
            assert [request.args[0] for request in requests] == [text["prompt"]]

    examples = [text["prompt"] + text["completion"] + "\n\n" for text in texts]
    context = task.fewshot_context(doc, num_fewshot=1)
    context = context[0] if isinstance(context, list) else context
    assert context.startswith(tuple(examples))


@pytest.mark.parametrize("name", CASES)
def test_examples_are_those_that_lm_eval_shows(official, name):
    """With one of two rows as example, a document's example is the other one."""
    texts = list(TaskTexts(load(official, name), "train", num_fewshot=1))
    task = load(official, name)
    task.set_config("num_fewshot", 1)
    plain = list(TaskTexts(load(official, name), "train"))
    for number, text in enumerate(texts):
        scored = []
        for seed in range(8):  # lm_eval may show a document its own answer
            task.set_fewshot_seed(seed)
            task.build_all_requests()
            scored += [r.args[:2] for r in task.instances if r.doc_id == number]
        request = (text["prompt"], text["completion"])
        if task.OUTPUT_TYPE == "multiple_choice":
            assert request in scored
        else:
            assert text["prompt"] in [prompt for prompt, _ in scored]
        shown, asked = plain[1 - number], plain[number]
        example = shown["prompt"] + shown["completion"] + "\n\n"
        assert request == (example + asked["prompt"], asked["completion"])


def scores(task, doc, num_choices, best):
    """lm_eval's verdict on a model that prefers one choice."""
    likelihoods = [(-float(i != best), i == best) for i in range(num_choices)]
    results = task.process_results(doc, likelihoods)
    return results["em" if task.config.task == "record" else "acc"]


def test_generated_answers_count_as_right(official):
    task = load(official, "coqa")
    for doc, text in zip(task.eval_docs, TaskTexts(task, "validation"), strict=True):
        # Where there are several right answers, each is compared with the others only.
        best = max(task.process_results(doc, [gold])["f1"] for gold in task.doc_to_target(doc))
        assert task.process_results(doc, [text["completion"]])["f1"] == best > 0


@pytest.mark.parametrize("max_length", [None, 16])
@pytest.mark.parametrize("name", ["boolq", "winogrande", "record", "copa"])
def test_labels_have_the_likelihood_that_lm_eval_computes(
    official, tokenizer_dir, name, max_length
):
    torch.manual_seed(0)
    config = tiny.CONFIGS["llama"](
        vocab_size=320,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    lm = HFLM(model, tokenizer=AutoTokenizer.from_pretrained(tokenizer_dir), max_length=max_length)
    # lm_eval takes one token more, the last, which is no input to the model.
    tokenizer = HFTokenizer(tokenizer_dir, max_length and max_length + 1)
    dataset = lm_eval_task(tokenizer, name, include_path=official, add_eos=False)
    task = load(official, name)
    task.build_all_requests(limit=1)
    text = TaskTexts(task, "train")[0]
    (request,) = [r for r in task.instances if r.args == (text["prompt"], text["completion"])]
    ((expected, _),) = lm.loglikelihood([request], disable_tqdm=True)
    batch = collate([dataset[0]], pad_id=0)
    with torch.no_grad():
        logits = model(batch.inputs["tokens"]).logits[0]
    actual = -F.cross_entropy(logits, batch.labels[0], reduction="sum").item()
    assert actual == pytest.approx(expected, rel=1e-5)


def test_answer_and_end_are_labels(tokenizer, official):
    sample = lm_eval_task(tokenizer, "boolq", include_path=official)[0]
    answer = tokenizer.encode(" yes", add_bos=False)
    assert tokenizer.decode(sample["tokens"]) == (
        "Ice is frozen water.\nQuestion: is ice water?\nAnswer: yes<|im_end|>"
    )
    prompt_length = len(sample["tokens"]) - len(answer)
    assert sample["labels"] == [IGNORE] * prompt_length + answer
    everything = lm_eval_task(tokenizer, "boolq", include_path=official, train_on_prompt=True)
    assert everything[0]["labels"] == sample["tokens"]


def test_from_a_config(tokenizer_dir, official):
    node = {
        "_component_": "kd_data.lm_eval_task",
        "task": "hellaswag",
        "split": "validation",
        "include_path": str(official),
        "max_samples": 1,
    }
    tokenizer = HFTokenizer(tokenizer_dir, max_seq_len=200)
    dataset = instantiate(OmegaConf.create(node), tokenizer)
    assert len(dataset) == len(list(dataset)) == 1
    packed = instantiate(OmegaConf.create(node | {"packed": True}), tokenizer)
    assert isinstance(packed, PackedDataset)
    assert packed[0]["tokens"][: len(dataset[0]["tokens"])].tolist() == dataset[0]["tokens"]


def test_likelihood_of_the_last_word(tmp_path):
    rows = [{"text": "A name is bound to an object"}]
    texts = texts_of(
        tmp_path, "test", rows=rows, include=str(ROOT / "lambada" / "lambada_openai.yaml")
    )
    assert texts == [pair("A name is bound to an", " object")]


def test_plain_text_has_no_prompt(tmp_path, tokenizer):
    task = GENERATE | {"output_type": "loglikelihood_rolling", "doc_to_text": ""}
    task |= {"generation_kwargs": None, "metric_list": [{"metric": "word_perplexity"}]}
    assert texts_of(tmp_path, **task)[0] == pair("", "2.")
    sample = lm_eval_task(tokenizer, "local", include_path=tmp_path)[0]
    assert sample["tokens"] == sample["labels"] == tokenizer.encode("2.")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, pair("1 and 1?", " 2.")),
        ({"target_delimiter": "\n"}, pair("1 and 1?", "\n2.")),
        ({"description": "Add.\n\n"}, pair("Add.\n\n1 and 1?", " 2.")),
        ({"gen_prefix": "It is"}, pair("1 and 1? It is", " 2.")),
        ({"gen_prefix": "It is "}, pair("1 and 1? It is ", "2.")),
        ({"doc_to_target": "{{[a, a + '0']}}"}, pair("1 and 1?", " 2")),
        ({"doc_to_choice": ["even", "odd"], "doc_to_target": "gold"}, pair("1 and 1?", " odd")),
    ],
)
def test_what_is_to_be_generated(tmp_path, options, expected):
    assert texts_of(tmp_path, **GENERATE | options)[0] == expected
    task = load(tmp_path, "local")
    doc = task.eval_docs[0]
    context = task.fewshot_context(doc, num_fewshot=0, gen_prefix=task.doc_to_prefix(doc))
    assert context == expected["prompt"]


@pytest.mark.parametrize(
    ("target", "answer"),
    [("gold", "odd"), ("{{gold}}", "odd"), ("{{['even', 'odd'][gold]}}", "odd"), (0, "even")],
)
def test_forms_of_the_right_choice(tmp_path, target, answer):
    texts = texts_of(tmp_path, **CHOICES | {"doc_to_target": target})
    assert texts[0] == pair("1 and 1?", f" {answer}")


def test_of_several_right_choices_the_first_is_taken(tmp_path):
    rows = [row | {"all": [1, 0]} for row in QUESTIONS]
    texts = texts_of(tmp_path, rows=rows, **CHOICES | {"doc_to_target": "all"})
    assert texts[0] == pair("1 and 1?", " odd")


@pytest.mark.parametrize(
    "splits",
    [
        {},
        {"test_split": "test"},
        {"fewshot_split": "train"},
        {"fewshot_split": "train", "test_split": "test"},
    ],
)
def test_a_document_is_no_example_for_itself(tmp_path, splits):
    write_task(tmp_path, "local", QUESTIONS, **GENERATE | splits)
    texts = TaskTexts(load(tmp_path, "local"), "train", num_fewshot=len(QUESTIONS) - 1)
    for i, row in enumerate(QUESTIONS):
        prompt = texts[i]["prompt"]
        assert prompt == texts[i]["prompt"]
        *examples, question = prompt.split("\n\n")
        assert question == row["q"]
        others = [other for other in QUESTIONS if other is not row]
        assert sorted(examples) == [f"{other['q']} {other['a']}." for other in others]


def test_the_tasks_own_number_of_examples(tmp_path):
    for num_fewshot, expected in ((None, 2), (0, 0), (1, 1)):
        write_task(tmp_path, "local", QUESTIONS, **GENERATE | {"num_fewshot": 2})
        texts = TaskTexts(load(tmp_path, "local"), "train", num_fewshot=num_fewshot)
        assert texts[0]["prompt"].count("\n\n") == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "test"}, "task local has no test split; it has train and validation"),
        ({"split": "dev"}, "split is 'dev'; use train, validation, test"),
        ({"max_samples": 0}, "max_samples is 0"),
        ({"num_fewshot": -1}, "num_fewshot is -1"),
        ({"packed": True}, "tokenizer.max_seq_len must be set"),
    ],
)
def test_bad_arguments(tmp_path, tokenizer, options, words):
    write_task(tmp_path, "local", QUESTIONS, **GENERATE)
    with pytest.raises(ValueError, match=words) as error:
        lm_eval_task(tokenizer, "local", include_path=tmp_path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["truthfulqa_mc1", "truthfulqa_mc2"])
def test_truthfulqa_has_no_documents_for_training(tmp_path, tokenizer, name):
    definition = str(ROOT / "truthfulqa" / f"{name}.yaml")
    write_task(tmp_path, name, TRUTHFULQA, include=definition)
    with pytest.raises(ValueError, match=f"{name} has no train split; it has validation"):
        lm_eval_task(tokenizer, name, include_path=tmp_path)
    sample = lm_eval_task(tokenizer, name, "validation", tmp_path)[0]
    text = tokenizer.decode(sample["tokens"])
    assert text.endswith("\n\nQ: Can pigs fly?\nA: No, they cannot<|im_end|>")


def test_as_an_encoder_decoder_reads_and_writes_it(tmp_path, official):
    families.save_word_tokenizer(tmp_path)
    tokenizer = HFTokenizer(tmp_path, 16)
    hf = AutoTokenizer.from_pretrained(tmp_path)
    dataset = lm_eval_task(tokenizer, "boolq", include_path=official, seq2seq=True, max_samples=1)
    prompt = "Ice is frozen water.\nQuestion: is ice water?\nAnswer:"
    assert len(dataset) == 1
    assert dataset.texts(0) == (prompt, "yes")
    assert dataset[0] == {
        "tokens": hf(prompt, truncation=True, max_length=16)["input_ids"],
        "labels": hf(text_target="yes")["input_ids"],
    }
    for option in ("packed", "train_on_prompt"):
        with pytest.raises(ValueError, match="seq2seq is true: leave out packed and train_on_pr"):
            lm_eval_task(tokenizer, "boolq", include_path=official, seq2seq=True, **{option: True})
    with pytest.raises(ValueError, match="object cannot put an encoder's markers"):
        lm_eval_task(object(), "absent", seq2seq=True)


def test_secret_answers(tmp_path, tokenizer):
    rows = [row | {"gold": -1} for row in QUESTIONS]
    write_task(tmp_path, "local", rows, **CHOICES)
    words = "task local: document 0 has no answer to learn: -1 is none of the 2 choices"
    with pytest.raises(ValueError, match=words):
        lm_eval_task(tokenizer, "local", include_path=tmp_path)
    write_task(tmp_path, "empty", QUESTIONS, **GENERATE | {"doc_to_target": " "})
    with pytest.raises(ValueError, match=r"task empty: document 0 .*its target is empty"):
        lm_eval_task(tokenizer, "empty", include_path=tmp_path)


def test_unknown_names(tmp_path, tokenizer):
    write_task(tmp_path, "my_numbers", QUESTIONS, **GENERATE)
    with pytest.raises(ValueError, match=r"my_number is no lm_eval task.*did you mean my_numbers"):
        lm_eval_task(tokenizer, "my_number", include_path=tmp_path)
    with pytest.raises(ValueError, match=r"helaswag is no lm_eval task.*did you mean hellaswag"):
        lm_eval_task(tokenizer, "helaswag")
    with pytest.raises(FileNotFoundError, match=r"include_path: no such directory: .*absent"):
        lm_eval_task(tokenizer, "my_numbers", include_path=tmp_path / "absent")


def test_data_that_cannot_be_had(tokenizer, monkeypatch):
    def offline(path, **_):
        raise ConnectionError(f"cannot reach\n{path}")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(ValueError, match="task boolq cannot be loaded: cannot reach aps/super_gl"):
        lm_eval_task(tokenizer, "boolq")


def test_words_in_common():
    assert compute_exact("The cat's hat!", "cats hat") == 1
    assert compute_exact("cat", "dog") == 0
    # Two of three words are right, and two of four are found.
    assert compute_f1("one two three four", "two, three five") == pytest.approx(4 / 7)
    assert compute_f1("a cat", "the dog") == 0
    assert (compute_f1("the", "a"), compute_f1("cat", "a")) == (1, 0)
