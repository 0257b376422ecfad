"""What a config names twice has to be one thing: a model's directory, its tokenizer, the output."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hf_models import HFCheckpointer, read_config, vocabulary_mismatch
from hf_models.vocabulary import has_tokenizer, load_tokenizer
from kd_config.check import takes
from kd_config.public import from_environment

_OUTPUT = "set checkpointer.output_dir: ${output_dir}"
# What a config.json says about the file itself, or about running the model, not about its numbers.
_BOOKKEEPING = {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
                "use_cache"}  # fmt: skip
# No digits, no punctuation: for these, one vocabulary may be split in several ways.
_PROBE = "An assignment binds a name to an object"


def check_output(cfg: DictConfig) -> None:
    """Make sure that the students will lie in the run's directory.

    Raises:
        ValueError: If ``checkpointer.output_dir`` is missing or another one.
    """
    directory = cfg.checkpointer.get("output_dir")
    if directory is None and takes(cfg.checkpointer, "output_dir"):
        raise ValueError(
            f"config: checkpointer.output_dir is not set, so no student could be saved; {_OUTPUT}"
        )
    if isinstance(directory, str) and not _same(directory, cfg.output_dir):
        raise ValueError(
            f"config: checkpointer.output_dir is {directory}, but output_dir is {cfg.output_dir}; "
            f"a run writes into one directory: {_OUTPUT}"
        )


def check_model_configs(cfg: DictConfig, with_teacher: bool) -> None:
    """Make sure that a model is built, loaded and exported by one config.json.

    Raises:
        ValueError: If that of ``model.checkpoint_dir`` is not that of
            ``checkpointer.checkpoint_dir``, or the teacher's are two.
    """
    for prefix in ("", "teacher_") if with_teacher else ("",):
        keys = f"{prefix}model.checkpoint_dir", f"{prefix}checkpointer.checkpoint_dir"
        built, loaded = (OmegaConf.select(cfg, key) for key in keys)
        if not (isinstance(built, str) and isinstance(loaded, str)) or _same(built, loaded):
            continue
        if not Path(loaded, "config.json").is_file():
            continue  # for the checkpointer to refuse
        ours, theirs = read_config(built).to_dict(), read_config(loaded).to_dict()
        names = sorted((ours.keys() | theirs.keys()) - _BOOKKEEPING)
        for name in names:
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"config: {keys[0]} ({built}) and {keys[1]} ({loaded}) are two models: "
                    f"{name} is {ours.get(name)} and {theirs.get(name)} in their config.json; "
                    f"set {keys[1]}: ${{{keys[0]}}}"
                )


def check_tokenizers(
    cfg: DictConfig, student: Any, teacher: Any, tokenizer: Any, teacher_tokenizer: Any
) -> None:
    """Make sure that ids mean to each model what they mean to the tokenizer that it is fed by.

    Args:
        cfg: The run's config.
        student: The student, on any device.
        teacher: The teacher; None without one.
        tokenizer: What ``cfg.tokenizer`` builds.
        teacher_tokenizer: What ``cfg.teacher_tokenizer`` builds; None without one.

    Raises:
        ValueError: If the tokenizer of a model's own directory gives an id to another token, or a
            model has no embedding for an id.
    """
    _check_tokenizer(
        cfg,
        ("tokenizer", tokenizer),
        ("model", student),
        "checkpointer",
        "use the student's own tokenizer: "
        "{_component_: hf_models.tokenizer, checkpoint_dir: ${checkpointer.checkpoint_dir}}",
    )
    if teacher is None:
        return
    key = "tokenizer" if teacher_tokenizer is None else "teacher_tokenizer"
    remedy = "set teacher_tokenizer.checkpoint_dir: ${teacher_checkpointer.checkpoint_dir}"
    if teacher_tokenizer is None:
        remedy = (
            "student and teacher must share one tokenizer, or teacher_tokenizer must name the "
            "teacher's and kd_loss kd_losses.ULDLoss"
        )
    _check_tokenizer(
        cfg,
        (key, tokenizer if teacher_tokenizer is None else teacher_tokenizer),
        ("teacher_model", teacher),
        "teacher_checkpointer",
        remedy,
    )


def _check_tokenizer(
    cfg: DictConfig,
    tokenizer: tuple[str, Any],
    model: tuple[str, Any],
    checkpointer: str,
    remedy: str,
) -> None:
    (key, built), (model_key, decoder) = tokenizer, model
    directory = OmegaConf.select(cfg, f"{checkpointer}.checkpoint_dir")
    if isinstance(directory, str) and has_tokenizer(directory):
        ours = OmegaConf.select(cfg, f"{key}.checkpoint_dir")
        if isinstance(ours, str):
            mismatch = vocabulary_mismatch(ours, directory)
        else:
            mismatch = _other_ids(built, directory)
        if mismatch:
            raise ValueError(
                f"config: {key} and {checkpointer}: the vocabularies disagree: {mismatch}; {remedy}"
            )
    largest, rows = _largest_id(built), decoder.tok_embeddings.num_embeddings
    if largest >= rows:
        raise ValueError(
            f"config: {key} has ids up to {largest}, but {model_key} has embeddings for "
            f"{rows} only, from 0 to {rows - 1}; {remedy}"
        )


def _largest_id(tokenizer: Any) -> int:
    """Largest id that a tokenizer can give; those of added tokens may leave a gap."""
    added = getattr(tokenizer, "special_tokens", None)
    ids = list(added.values()) if isinstance(added, dict) else []
    return max([getattr(tokenizer, "vocab_size", 0) - 1, *ids])


def _other_ids(tokenizer: Any, directory: str) -> str | None:
    """How one of torchtune's own tokenizers, which have no directory, differs on a few words."""
    if not type(tokenizer).__module__.startswith("torchtune."):
        return None
    ours = list(tokenizer.encode(_PROBE, add_bos=False, add_eos=False))
    theirs = load_tokenizer(directory)(_PROBE, add_special_tokens=False).input_ids
    if ours == theirs:
        return None
    return f"{_PROBE!r} is {ours} to {type(tokenizer).__name__}, and {theirs} in {directory}"


def prepare_export(cfg: DictConfig, checkpointer: Any) -> None:
    """Have the student saved with the tokenizer that it is trained with.

    Its adapter does not name a base whose path is told by the environment. torchtune's own
    checkpointers copy whatever the student's directory has.
    """
    if not isinstance(checkpointer, HFCheckpointer):
        return
    directory = OmegaConf.select(cfg, "tokenizer.checkpoint_dir")
    if isinstance(directory, str):
        checkpointer.tokenizer_dir = Path(directory)
    if from_environment(cfg, "checkpointer.checkpoint_dir"):
        checkpointer.base_dir = None


def _same(a: str, b: str) -> bool:
    return Path(a).resolve() == Path(b).resolve()
