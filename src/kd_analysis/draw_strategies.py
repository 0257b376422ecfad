"""The README's picture of the strategies, for 3 student and 12 teacher layers.

python -m kd_analysis.draw_strategies docs/strategies.png
"""

import sys
from pathlib import Path

import layer_mapping
from kd_analysis.plots import plot_mappings

_DEPTHS = (3, 12)


def main(picture: Path) -> None:
    """Draw it into ``picture``."""
    mappings = {
        "forward": layer_mapping.forward(*_DEPTHS),
        "reverse": layer_mapping.reverse(*_DEPTHS),
        "all_to_one": layer_mapping.all_to_one(*_DEPTHS),
        "random, seed 1": layer_mapping.random(*_DEPTHS, seed=1),
        "in_order_random": layer_mapping.in_order_random(*_DEPTHS, epoch=1),
        "last": layer_mapping.last(*_DEPTHS),
    }
    plot_mappings(mappings, *_DEPTHS, picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
