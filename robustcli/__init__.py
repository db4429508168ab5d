"""robustcli: train, attack and measure robust image classifiers.

    import robustcli
    model = robustcli.load_model("run:runs/train/latest")
    verdict = robustcli.evaluate(model, x, y, eps=8/255, attack="pgd", steps=20)
    training = robustcli.train("train/digits", out="runs/mine")

Names are loaded at first use, so that `import robustcli` and `robustcli --help` do not import torch.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = [
    "Certificates",
    "Training",
    "Verdict",
    "__version__",
    "assert_robust",
    "attack",
    "benchmark",
    "certify",
    "evaluate",
    "labels_only",
    "load_model",
    "train",
]
_LEARN = ("Training", "train")


def __getattr__(name: str) -> Any:
    if name in _LEARN:
        from robustcli import learn

        return getattr(learn, name)
    if name in __all__:
        from robustcli import api

        return getattr(api, name)
    raise AttributeError(f"module 'robustcli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
