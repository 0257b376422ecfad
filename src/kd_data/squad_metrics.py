"""SQuAD's two scores, for lm_eval's tasks that look for them in transformers.

lm_eval's coqa, record and a few others import ``transformers.data.metrics.squad_metrics``, which
transformers 5 no longer has: without a stand-in they cannot even be loaded.
"""

import importlib.util
import re
import string
import sys
from collections import Counter
from types import ModuleType

_PACKAGE = "transformers.data.metrics"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def compute_exact(gold: str, prediction: str) -> int:
    """1 where both are the same words in the same order, else 0.

    Case, punctuation and articles do not count (https://arxiv.org/abs/1606.05250).
    """
    return int(_words(gold) == _words(prediction))


def compute_f1(gold: str, prediction: str) -> float:
    """2PR / (P + R) of the words in common; two answers without words count as equal."""
    gold_words, words = _words(gold), _words(prediction)
    if not gold_words or not words:
        return float(gold_words == words)
    num_common = (Counter(gold_words) & Counter(words)).total()
    return 2 * num_common / (len(gold_words) + len(words))


def provide_squad_metrics() -> None:
    """Put this module where lm_eval's tasks look for it, unless transformers has its own."""
    if _PACKAGE not in sys.modules and importlib.util.find_spec(_PACKAGE) is None:
        sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
        sys.modules[f"{_PACKAGE}.squad_metrics"] = sys.modules[__name__]


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()
