"""Every part that an objective may have, in the order of the log: one line each."""

from collections.abc import Callable

from kd_config.components import component, expect
from kd_training.objective import agreement, distribution, entropy, labels, layers
from kd_training.objective.parts import Parts
from kd_training.objective.term import Term

# Name → what builds the terms of that name; none where the config does not ask for them.
TERMS: dict[str, Callable[[str, Parts], list[Term]]] = {
    "ce": labels.build,
    "kd": distribution.build,
    "ir": layers.build,
    "prompt_kd": distribution.build_prompt,
    "agreement": agreement.build,
    "entropy": entropy.build,
}


# What the log has besides the terms.
_TAKEN = ("total", "lr", "grad_norm", "tokens_per_second", "num_tokens", "skipped_steps",
          "peak_memory_gib", "generated_length", "finished", "repetition", "generated_per_second",
          "generation_seconds", "trained_per_second")  # fmt: skip


def build_terms(parts: Parts) -> list[Term]:
    """The terms that the config asks for, its own ones under ``terms`` last.

    Raises:
        ValueError: If one cannot be built, or none is trained for.
    """
    built = [term for name, build in TERMS.items() for term in build(name, parts)]
    for name, node in parts.config.terms.items():
        key = f"terms.{name}"
        if name in TERMS or name in _TAKEN:
            raise ValueError(f"config: {key}: the log has another {name}; give it another name")
        term = component(node, key)
        kind = "a term of the objective, such as a kd_training.LogitsTerm"
        expect(isinstance(term, Term), node, key, kind)
        term.name, term.title, term.loss_key = name, term.title or name, key
        term.weighs_as = None if term.observed else name
        if term.observed or parts.weights[name] > 0:
            built.append(term)
    if all(term.observed for term in built):
        raise ValueError("config: kd_ratio, loss_scaling: every part has the weight 0: no loss")
    return built
