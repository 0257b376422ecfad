"""What a config names twice has to be one thing: a model's directory, its tokenizer, the output."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_models import HFCheckpointer, read_config, vocabulary_mismatch
from hf_models.model import ModelFacts
from hf_models.vocabulary import has_tokenizer, load_tokenizer
from kd_config.components import argument, takes
from kd_config.schema import RunConfig

_OUTPUT = "set checkpointer.output_dir: ${output_dir}"
# What a config.json says about the file itself, or about running the model, not about its numbers.
_BOOKKEEPING = {"architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
                "use_cache"}  # fmt: skip
# No digits, no punctuation: for these, one vocabulary may be split in several ways.
_PROBE = "An assignment binds a name to an object"


def check_output(config: RunConfig) -> None:
    """Make sure that the students will lie in the run's directory.

    Raises:
        ValueError: If ``checkpointer.output_dir`` is missing or another one.
    """
    directory = argument(config.checkpointer, "output_dir")
    if directory is None and takes(config.checkpointer, "output_dir"):
        raise ValueError(
            f"config: checkpointer.output_dir is not set, so no student could be saved; {_OUTPUT}"
        )
    if isinstance(directory, str) and not _same(directory, config.output_dir):
        raise ValueError(
            f"config: checkpointer.output_dir is {directory}, but output_dir is "
            f"{config.output_dir}; a run writes into one directory: {_OUTPUT}"
        )


def check_model_configs(config: RunConfig, teachers: Iterable[str] = ()) -> None:
    """Make sure that a model is built, loaded and exported by one config.json.

    Args:
        config: The run's config.
        teachers: The keys of its teachers' models, such as ``teacher_model``.

    Raises:
        ValueError: If that of ``model.checkpoint_dir`` is not that of
            ``checkpointer.checkpoint_dir``, or a teacher's are two.
    """
    for model in ("model", *teachers):
        nodes = [node_at(config, name) for name in (model, checkpointer_of(model))]
        keys = [f"{name}.checkpoint_dir" for name in (model, checkpointer_of(model))]
        built, loaded = (argument(node, "checkpoint_dir") for node in nodes)
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
    config: RunConfig,
    student: ModelFacts,
    teachers: Mapping[str, ModelFacts],
    tokenizer: Any,
    teacher_tokenizer: Any,
) -> None:
    """Make sure that ids mean to each model what they mean to the tokenizer that it is fed by.

    Args:
        config: The run's config.
        student: The student's sizes.
        teachers: Those of each model that teaches, by its key of the config.
        tokenizer: What ``config.tokenizer`` builds.
        teacher_tokenizer: What ``config.teacher_tokenizer`` builds; None without one.

    Raises:
        ValueError: If the tokenizer of a model's own directory gives an id to another token, or a
            model has no embedding for an id.
    """
    _check_tokenizer(
        config,
        ("tokenizer", tokenizer),
        ("model", student),
        "checkpointer",
        "use the student's own tokenizer: "
        "{_component_: hf_models.tokenizer, checkpoint_dir: ${checkpointer.checkpoint_dir}}",
    )
    key = "tokenizer" if teacher_tokenizer is None else "teacher_tokenizer"
    remedy = "set teacher_tokenizer.checkpoint_dir to the teacher's directory"
    if teacher_tokenizer is None:
        remedy = (
            "student and teacher must share one tokenizer, or teacher_tokenizer must name the "
            "teacher's and kd_loss kd_losses.ULDLoss"
        )
    built = tokenizer if teacher_tokenizer is None else teacher_tokenizer
    for model, facts in teachers.items():
        _check_tokenizer(config, (key, built), (model, facts), checkpointer_of(model), remedy)


def checkpointer_of(model: str) -> str:
    """The key of the checkpointer that belongs to a model's: ``teachers.a.model`` and the like.

    Kept answers have a key of another kind, and no checkpointer.
    """
    return f"{model.removesuffix('model')}checkpointer" if model.endswith("model") else ""


def node_at(config: RunConfig, key: str) -> Any:
    """What the config holds at a dotted key; None where there is nothing."""
    found: Any = config
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else getattr(found, name, None)
    return found


def _check_tokenizer(
    config: RunConfig,
    tokenizer: tuple[str, Any],
    model: tuple[str, ModelFacts],
    checkpointer: str,
    remedy: str,
) -> None:
    (key, built), (model_key, facts) = tokenizer, model
    directory = argument(node_at(config, checkpointer), "checkpoint_dir")
    if isinstance(directory, str) and has_tokenizer(directory):
        ours = argument(getattr(config, key), "checkpoint_dir")
        if isinstance(ours, str):
            mismatch = vocabulary_mismatch(ours, directory)
        else:
            mismatch = _other_ids(built, directory)
        if mismatch:
            raise ValueError(
                f"config: {key} and {checkpointer}: the vocabularies disagree: {mismatch}; {remedy}"
            )
    largest, rows = _largest_id(built), facts.vocabulary
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


def prepare_export(config: RunConfig, checkpointer: Any, hidden_base: bool) -> None:
    """Have the student saved with the tokenizer that it is trained with.

    Its adapter does not name a base whose path is hidden, because the environment tells it.
    torchtune's own checkpointers copy whatever the student's directory has.
    """
    if not isinstance(checkpointer, HFCheckpointer):
        return
    directory = argument(config.tokenizer, "checkpoint_dir")
    if isinstance(directory, str):
        checkpointer.tokenizer_dir = Path(directory)
    if hidden_base:
        checkpointer.base_dir = None


def _same(a: str, b: str) -> bool:
    return Path(a).resolve() == Path(b).resolve()
