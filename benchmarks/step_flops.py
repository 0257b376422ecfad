"""The matrix products that no implementation of a step can avoid, and how long they take.

Shapes: N tokens, D width, V vocabulary, r LoRA's rank.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

TEACHER, TEACHER_HEAD, STUDENT, STUDENT_HEAD = "teacher", "teacher head", "student", "student head"
PARTS = [TEACHER, TEACHER_HEAD, STUDENT, STUDENT_HEAD]


class Product(NamedTuple):
    """``[rows, inner] @ [inner, columns]``."""

    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns


class Work(NamedTuple):
    """A part's products with how often each is done, and the attention's FLOPs."""

    products: Counter[Product]
    attention: int = 0

    @property
    def flops(self) -> int:
        """All of them."""
        return self.attention + sum(p.flops * number for p, number in self.products.items())


def step_work(
    teacher: Any, student: Any, lengths: Sequence[int], labels: int, causal: bool = True
) -> dict[str, Work]:
    """The work of a step by part.

    A frozen layer is multiplied once forward and once for its input's gradient; LoRA's matrices
    also once for their own. The first block's queries, keys and values need no gradient of their
    input, which comes from frozen embeddings. Both heads are multiplied by the labelled positions
    alone, the student's once more for the gradient of the hidden states.

    Args:
        teacher: A torchtune decoder, on any device.
        student: The same, with what is trained requiring a gradient.
        lengths: Tokens of each document of the step.
        labels: Label tokens of the step.
        causal: Count only the pairs of positions that see one another.
    """
    heads = (_head(teacher, labels), _head(student, labels))
    tokens = sum(lengths)
    return {
        TEACHER: Work(_forward(teacher, tokens), _attention(teacher, lengths, causal)),
        TEACHER_HEAD: Work(Counter({heads[0]: 1})),
        STUDENT: Work(
            _forward(student, tokens) + _backward(student, tokens),
            3 * _attention(student, lengths, causal),
        ),
        STUDENT_HEAD: Work(
            Counter({heads[1]: 1}) + Counter({Product(labels, heads[1].columns, heads[1].inner): 1})
        ),
    }


class _Linear(NamedTuple):
    inner: int
    columns: int
    trained: bool
    input_grad: bool


def _linears(model: Any) -> Iterator[_Linear]:
    """Every matrix of the blocks; a LoRA layer's own is its ``weight``, its others are modules."""
    trained_below = any(p.requires_grad for p in model.tok_embeddings.parameters())
    for name, module in model.layers.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 2:
            first = name.startswith("0.attn.") and any(
                name.startswith(f"0.attn.{one}") for one in ("q_proj", "k_proj", "v_proj")
            )
            # What lora_b reads comes from lora_a, which is trained.
            input_grad = trained_below or not first or name.endswith("lora_b")
            yield _Linear(weight.shape[1], weight.shape[0], weight.requires_grad, input_grad)


def _forward(model: Any, tokens: int) -> Counter[Product]:
    return Counter(Product(tokens, one.inner, one.columns) for one in _linears(model))


def _backward(model: Any, tokens: int) -> Counter[Product]:
    products: Counter[Product] = Counter()
    for one in _linears(model):
        if one.input_grad:
            products[Product(tokens, one.columns, one.inner)] += 1
        if one.trained:
            products[Product(one.columns, tokens, one.inner)] += 1
    return products


def _attention(model: Any, lengths: Sequence[int], causal: bool) -> int:
    """FLOPs of one forward: queries with keys, and weights with values."""
    pairs = sum(n * (n + 1) // 2 if causal else n * n for n in lengths)
    return sum(4 * pairs * one.attn.num_heads * one.attn.head_dim for one in model.layers)


def _head(model: Any, labels: int) -> Product:
    embeddings = model.tok_embeddings
    return Product(labels, embeddings.embedding_dim, embeddings.num_embeddings)
