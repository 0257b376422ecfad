"""Terms of the loss, and a tokenizer, as a user writes them."""

from kd_training import LogitsTerm


class Confidence(LogitsTerm):
    """Σ q·log q of the student: minimised, it keeps the student unsure."""

    title = "confidence of the student"

    def per_token(self, student_logits, teacher_logits, labels):
        log_q = student_logits.log_softmax(-1)
        return (log_q.exp() * log_q).sum(-1)


class MarginAhead(LogitsTerm):
    """How much more probable the teacher's best token is to the student than its second best."""

    needs_teacher = True
    observed = True

    def per_token(self, student_logits, teacher_logits, labels):
        best = teacher_logits.topk(2, dim=-1).indices
        first, second = student_logits.log_softmax(-1).gather(-1, best).unbind(-1)
        return first - second


class NoEncoder:
    """A tokenizer for causal models alone, such as torchtune's own."""

    pad_id = 0
    vocab_size = 4
    max_seq_len = None

    def encode(self, text, add_bos=True, add_eos=True):
        return [1, 2, 3]
