"""What a divergence loses where only the teacher's k most probable tokens are kept.

python benchmarks/top_k_bias.py [--student DIR] [--positions 2000]

On held-out text of the quickstart, mean over positions: the dense value, and the value of the
bucketed form for several k as a share of it; the cosine of the two gradients with respect to the
student's hidden states; and of BiLD how many of the student's favourites were kept.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import kd_losses
from hf_models import HFCheckpointer, decoder, tokenizer
from hf_models.loading import load
from hf_models.torchtune_decoder.model import DecoderModel
from kd_losses import Divergence, KeptFavourites, Projected, Rows, Scoped, chunked_sums, keep_top_k

TEACHER = "models/SmolLM2-135M-Instruct"
TEXTS = Path("data/reference_manual/heldout.jsonl")
KS = (8, 64, 512)
LOSSES = {
    "ForwardKLLoss": kd_losses.ForwardKLLoss(),
    "ForwardKLLoss, temperature 2": kd_losses.ForwardKLLoss(temperature=2.0),
    "ReverseKLLoss": kd_losses.ReverseKLLoss(),
    "JSDistanceLoss": kd_losses.JSDistanceLoss(lambda_weight=0.5),
    "TVDistanceLoss": kd_losses.TVDistanceLoss(),
    "BiLDLoss": kd_losses.BiLDLoss(),
}


def model_of(directory: str) -> DecoderModel:
    """A model with its weights."""
    with torch.device("meta"):
        model = DecoderModel(decoder(directory))
    load(model, HFCheckpointer(directory).load_checkpoint()["model"], "cpu")
    model.module.eval().requires_grad_(False)
    return model


def rows_of(model: DecoderModel, tokens: list[Tensor]) -> Projected:
    """The logits of all positions of some texts."""
    with torch.no_grad():
        hidden = [model.view({"tokens": text[None]}).hidden[0] for text in tokens]
    return Projected(torch.cat(hidden), model.head())


def value_and_grad(term: object, student: Projected, teacher: Rows) -> tuple[float, Tensor]:
    """The mean over positions, and the gradient of the hidden states (of what is trained for)."""
    hidden = student.hidden.clone().requires_grad_()
    everywhere = torch.ones(len(hidden), dtype=torch.bool)
    labels = torch.zeros(len(hidden), dtype=torch.long)
    own = Projected(hidden, student.head)
    result = chunked_sums(own, teacher, labels, [Scoped(term, everywhere, 1.0)])
    if result.total.requires_grad:
        result.total.backward()
    grad = torch.zeros_like(hidden) if hidden.grad is None else hidden.grad
    return result.sums[0].item() / len(hidden), grad


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="models/smollm2-15-layers")
    parser.add_argument("--positions", type=int, default=2000)
    given = parser.parse_args()
    encode = tokenizer(TEACHER, max_seq_len=384).encode
    texts, positions = [], 0
    for line in TEXTS.read_text().splitlines():
        texts.append(torch.tensor(encode(json.loads(line)["text"])[:384]))
        positions += len(texts[-1])
        if positions >= given.positions:
            break
    student, teacher = (rows_of(model_of(path), texts) for path in (given.student, TEACHER))
    kept = {k: keep_top_k(teacher, k, (1.0, 2.0, 3.0)) for k in KS}
    print(f"{positions} positions; mass kept: ", end="")
    masses = {k: 1 - one.rest[:, 0].exp().mean().item() for k, one in kept.items()}
    print(", ".join(f"k={k} {mass:.4f}" for k, mass in masses.items()))
    print("| divergence | dense |" + "".join(f" k={k}: value | gradient |" for k in KS))
    print("|---" * (2 + 2 * len(KS)) + "|")
    for name, loss in LOSSES.items():
        value, grad = value_and_grad(Divergence(loss), student, teacher)
        cells = []
        for one in kept.values():
            other, other_grad = value_and_grad(Divergence(loss), student, one)
            cosine = torch.cosine_similarity(grad.flatten(), other_grad.flatten(), dim=0)
            cells += [f"{other / value:.4f}", f"{cosine:.4f}"]
        print(f"| {name} | {value:.4f} | {' | '.join(cells)} |", flush=True)
    shares = {k: value_and_grad(KeptFavourites(8), student, one)[0] for k, one in kept.items()}
    print("the student's 8 favourites kept: ", end="")
    print(", ".join(f"k={k} {share:.3f}" for k, share in shares.items()))


if __name__ == "__main__":
    main()
