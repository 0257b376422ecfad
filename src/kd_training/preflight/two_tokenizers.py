"""What goes together with a teacher whose tokenizer is not the student's."""

from omegaconf import DictConfig

from kd_config.dataset_nodes import is_packed
from kd_config.values import loss_weights
from kd_losses import KDLoss


def check_two_tokenizers(cfg: DictConfig, kd_loss: KDLoss | None) -> None:
    """Check that ``teacher_tokenizer`` fits the parts of the loss and the data.

    Raises:
        ValueError: If a part compares tokens or positions that only one tokenizer has.
    """
    if cfg.teacher_tokenizer is None:
        return
    weights = loss_weights(cfg)
    if weights.kd > 0 and kd_loss is not None and kd_loss.shares_vocabulary:
        raise ValueError(
            f"config: kd_loss: {type(kd_loss).__name__} compares token by token, but "
            "teacher_tokenizer gives the teacher tokens of its own; use kd_losses.ULDLoss"
        )
    fits = {
        "layer_mapping": ("none", weights.ir == 0),
        "token_scope.kd": ("labels", cfg.token_scope.kd == "labels"),
        "prompt_kd_loss": ("null", cfg.prompt_kd_loss is None),
    }
    for key, (needed, fit) in fits.items():
        if not fit:
            raise ValueError(
                f"config: {key} must be {needed} with teacher_tokenizer: only the targets of the "
                "two tokenizers have counterparts, where they end at the same character"
            )
    for key in ("dataset", "dataset_val"):
        if is_packed(cfg[key]):
            raise ValueError(
                f"config: {key}.packed must be false with teacher_tokenizer: the two tokenizers "
                "would pack other samples together"
            )
