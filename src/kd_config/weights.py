"""What a config's weights come to."""

from kd_config.schema import RunConfig


def loss_weights(config: RunConfig) -> dict[str, float]:
    """The weight of each part: ``manual_scales`` if enabled, else ``1 - kd_ratio``, ``kd_ratio``.

    All other weights are those of ``loss_scaling.manual_scales`` either way; a term of one's own
    that has none there weighs 1. That of the intermediate layers is 0 where ``layer_mapping`` is
    ``none``. With ``dynamic`` it is the shares that the weights start from.
    """
    scaling = config.loss_scaling
    dynamic = scaling.dynamic if scaling.enabled else None
    scales = scaling.manual_scales if dynamic is None else dynamic.shares
    weights = scales.by_name()
    if config.layer_mapping in (None, "none"):
        weights["ir"] = 0.0
    if not scaling.enabled:
        weights |= {"ce": 1 - config.kd_ratio, "kd": config.kd_ratio}
    return weights | {name: 1.0 for name in config.terms if name not in weights}
