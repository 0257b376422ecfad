"""lm_eval's own tasks over two rows each, in the columns of their real data sets.

The expected texts are written by hand from the tasks' prompts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import lm_eval
import yaml
from datasets import Dataset

ROOT = Path(lm_eval.__file__).parent / "tasks"
# Every name that one of the tasks gives to a split.
SPLITS = ("train", "validation", "validation_matched", "test")


class Case(NamedTuple):
    """``prompt`` and ``completion`` are what the first row is to become."""

    definition: str
    rows: list[dict[str, Any]]
    prompt: str
    completion: str


def write_task(directory: Path, name: str, rows: Iterable[dict], **overrides: Any) -> None:
    """A task in ``directory`` whose data are ``rows``, in every split."""
    data = directory / f"{name}.jsonl"
    Dataset.from_list(list(rows)).to_json(data)
    write_definition(directory, name, {split: str(data) for split in SPLITS}, **overrides)


def write_definition(
    directory: Path, name: str, data_files: dict[str, str], **overrides: Any
) -> None:
    """A task in ``directory`` whose splits are local files."""
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": data_files, "cache_dir": str(directory / "cache")},
        **overrides,
    }
    (directory / f"{name}.yaml").write_text(yaml.safe_dump(task))


def write_official_tasks(directory: Path) -> None:
    """All of ``CASES``, each the official definition with local data."""
    for name, case in CASES.items():
        write_task(directory, name, case.rows, include=str(ROOT / case.definition))


TRUTHFULQA = [
    {
        "question": "Can pigs fly?",
        "mc1_targets": {"choices": ["No, they cannot", "Yes, they can"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["No, they cannot", "No", "Yes"], "labels": [1, 1, 0]},
    }
] * 2
ARC = Case(
    "arc/arc_easy.yaml",
    [
        {
            "id": "a",
            "question": "Which of these is a metal?",
            "choices": {"text": ["wood", "iron", "paper"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        },
        {
            "id": "b",
            "question": "What do plants need?",
            "choices": {"text": ["light", "noise", "oil", "sand"], "label": ["1", "2", "3", "4"]},
            "answerKey": "1",
        },
    ],
    "Question: Which of these is a metal?\nAnswer:",
    " iron",
)

CASES = {
    "hellaswag": Case(
        "hellaswag/hellaswag.yaml",
        [
            {
                "activity_label": "Baking",
                "ctx_a": "A man opens an oven.",
                "ctx_b": "he",
                "endings": ["sings.", "takes  out [step] bread.", "sleeps.", "swims."],
                "label": "1",
            },
            {
                "activity_label": "Rowing",
                "ctx_a": "Two women sit in a boat.",
                "ctx_b": "they",
                "endings": ["row.", "fly.", "cook.", "read."],
                "label": "0",
            },
        ],
        "Baking: A man opens an oven. He",
        " takes out bread.",
    ),
    "commonsense_qa": Case(
        "commonsense_qa/default.yaml",
        [
            {
                "question": f"Where would you keep {what}? ",
                "choices": {
                    "label": ["A", "B", "C", "D", "E"],
                    "text": ["attic", "fridge", "river", "bank", "moon"],
                },
                "answerKey": key,
            }
            for what, key in (("milk", "B"), ("money", "D"))
        ],
        "Question: Where would you keep milk?\nA. attic\nB. fridge\nC. river\nD. bank\nE. moon\n"
        "Answer:",
        " B",
    ),
    "coqa": Case(
        "coqa/default.yaml",
        [
            {
                "story": "Ann has a cat. It is black.",
                "questions": {"input_text": ["Who has a cat?", "Which colour?"]},
                "answers": {"input_text": ["Ann", "black"]},
                "additional_answers": {"0": {"input_text": ["Ann does", "it is black"]}},
            },
            {
                "story": "Bob ran.",
                "questions": {"input_text": ["Who ran?"]},
                "answers": {"input_text": ["Bob"]},
                "additional_answers": {"0": {"input_text": ["bob"]}},
            },
        ],
        "Ann has a cat. It is black.\n\nQ: Who has a cat?\n\nA: Ann\n\nQ: Which colour?\n\nA:",
        " black",
    ),
    "arc_easy": ARC,
    "arc_challenge": ARC._replace(definition="arc/arc_challenge.yaml"),
    "boolq": Case(
        "super_glue/boolq/default.yaml",
        [
            {"passage": "Ice is frozen water.", "question": f"is ice {what}", "label": label}
            for what, label in (("water", 1), ("steam", 0))
        ],
        "Ice is frozen water.\nQuestion: is ice water?\nAnswer:",
        " yes",
    ),
    "cb": Case(
        "super_glue/cb/default.yaml",
        [
            {"premise": "It rains.", "hypothesis": hypothesis, "label": label}
            for hypothesis, label in (("Ann is tall", 2), ("it is dry", 1))
        ],
        "It rains.\nQuestion: Ann is tall. True, False, or Neither?\nAnswer:",
        " Neither",
    ),
    "copa": Case(
        "super_glue/copa/default.yaml",
        [
            {
                "premise": "The glass broke.",
                "choice1": "It was full.",
                "choice2": "It fell.",
                "question": question,
                "label": label,
            }
            for question, label in (("cause", 1), ("effect", 0))
        ],
        "The glass broke because",
        # One space is the task's own, the other is lm_eval's delimiter.
        "  it fell.",
    ),
    "multirc": Case(
        "super_glue/multirc/default.yaml",
        [
            {"paragraph": "Ann ran.", "question": "Who ran?", "answer": answer, "label": label}
            for answer, label in (("Ann", 0), ("Bob", 1))
        ],
        "Ann ran.\nQuestion: Who ran?\nAnswer:",
        " Ann\nIs the answer correct? yes",
    ),
    "piqa": Case(
        "piqa/piqa.yaml",
        [
            {"goal": "Dry a cup.", "sol1": "Use a towel.", "sol2": "Use soup.", "label": label}
            for label in (1, 0)
        ],
        "Question: Dry a cup.\nAnswer:",
        " Use soup.",
    ),
    "record": Case(
        "super_glue/record/default.yaml",
        [
            {
                "passage": "Ann met Bob in Rome.\n@highlight\nA meeting\n@highlight\nIt was warm",
                "query": "@placeholder is a city",
                "entities": ["Rome", "Ann", "Bob", "Rome"],
                "answers": ["Rome"],
            },
            {
                "passage": "Bob left.",
                "query": "Who left? @placeholder",
                "entities": ["Bob", "Ann"],
                "answers": ["Bob"],
            },
        ],
        "Ann met Bob in Rome.\n\n  - A meeting.\n  - It was warm.\n",
        "   - Rome is a city",
    ),
    "rte": Case(
        "glue/rte/default.yaml",
        [
            {"sentence1": "Ann ran.", "sentence2": sentence, "label": label}
            for sentence, label in (("Bob ran.", 1), ("Somebody ran.", 0))
        ],
        "Ann ran.\nQuestion: Bob ran. True or False?\nAnswer:",
        " False",
    ),
    "sglue_rte": Case(
        "super_glue/rte/default.yaml",
        [
            {"premise": "Ann ran.", "hypothesis": hypothesis, "label": label}
            for hypothesis, label in (("Bob ran.", 1), ("Somebody ran.", 0))
        ],
        "Ann ran.\nQuestion: Bob ran. True or False?\nAnswer:",
        " False",
    ),
    "wic": Case(
        "super_glue/wic/default.yaml",
        [
            {
                "sentence1": "a river bank",
                "sentence2": "a rich bank",
                "start1": 8,
                "end1": 12,
                "label": label,
            }
            for label in (0, 1)
        ],
        "Sentence 1: a river bank\nSentence 2: a rich bank\nQuestion: Is the word 'bank' used in "
        "the same way in the two sentences above?\nAnswer:",
        " no",
    ),
    "winogrande": Case(
        "winogrande/default.yaml",
        [
            {
                "sentence": "The cup does not fit into the box because the _ is too big.",
                "option1": "cup",
                "option2": "box",
                "answer": answer,
            }
            for answer in ("1", "2")
        ],
        "The cup does not fit into the box because the cup",
        " is too big.",
    ),
    "wsc": Case(
        "super_glue/wsc/default.yaml",
        [
            {
                "text": "Ann told Mary a secret because she trusted her.",
                "span1_index": index,
                "span2_index": 6,
                "span1_text": name,
                "span2_text": "she",
                "label": label,
            }
            for index, name, label in ((0, "Ann", 1), (2, "Mary", 0))
        ],
        "Passage: Ann told Mary a secret because *she* trusted her.\nQuestion: In the passage "
        'above, does the pronoun "*she*" refer to "*Ann*"?\nAnswer:',
        " yes",
    ),
    "mnli": Case(
        "glue/mnli/default.yaml",
        [
            {"premise": "It rains.", "hypothesis": hypothesis, "label": label}
            for hypothesis, label in (("Ann sings ", 1), ("It is wet.", 0))
        ],
        "It rains.\nQuestion: Ann sings. True, False or Neither?\nAnswer:",
        " Neither",
    ),
    "qqp": Case(
        "glue/qqp/default.yaml",
        [
            {"question1": "How old is it?", "question2": "What is its age?", "label": label}
            for label in (1, 0)
        ],
        "Question 1: How old is it?\nQuestion 2: What is its age?\nQuestion: Do both questions ask "
        "the same thing?\nAnswer:",
        " yes",
    ),
    "qnli": Case(
        "glue/qnli/default.yaml",
        [
            {"question": "Who ran?", "sentence": sentence, "label": label}
            for sentence, label in (("It rains.", 1), ("Ann ran.", 0))
        ],
        "Who ran?\nIt rains.\nQuestion: Does this response answer the question?\nAnswer:",
        " no",
    ),
    "sst2": Case(
        "glue/sst2/default.yaml",
        [
            {"sentence": "a fine film ", "label": 1},
            {"sentence": "dull ", "label": 0},
        ],
        "a fine film \nQuestion: Is this sentence positive or negative?\nAnswer:",
        " positive",
    ),
    "wmt16-en-ro": Case(
        "translation/wmt16_en-ro.yaml",
        [
            {"translation": {"en": "Good morning, my friends.", "ro": "Bună dimineața, prieteni."}},
            {"translation": {"en": "The house is large.", "ro": "Casa este mare."}},
        ],
        "English phrase: Good morning, my friends.\nRomanian phrase:",
        "  Bună dimineața, prieteni.",
    ),
}
