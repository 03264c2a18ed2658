from __future__ import annotations

from bench.data.pack import Manifest

CONVENTION = "1"  # raise it when a metric changes its meaning: older rows then stand on another board


IMPORTED = "bench.imported"  # tag of a run that another store has logged: its id there


def data_tags(manifest: Manifest) -> dict[str, str]:
    """What every run says of its data, so that `boards` knows which runs may be compared."""
    return {
        "bench.dataset": manifest.dataset,
        "bench.data": manifest.key,
        "bench.convention": CONVENTION,
        "bench.synthetic": str(manifest.synthetic).lower(),
    }


KIND = "bench.kind"  # the tag that tells parents, folds and evaluations apart


PARENT, FOLD, EVALUATION = "cv", "fold", "evaluation"


LEAKY = "leaky"  # a parent whose split leaks: it is nowhere ranked
