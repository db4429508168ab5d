"""Hypothesis strategies for valid raw configs, derived from the schema's own annotations and bounds."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from robustcli.config.schema import Config
from robustcli.config.sections import Augment, BallConfig
from robustcli.config.spec import ModelConfig, Spec

WORDS = st.sampled_from([
    "x", "no", "on", "Yes", "null", "~", "true", "010", "0x1f", "1:30", "1_000", "1e3", "7", "-", "a b",
    "a: b", "a #b", "#a", "*a", "&a", "!a", "<<", "=", "8/255", ".nan", ".inf", "2020-01-01", "é", "日本",
    "'",
    '"', "{a}", "[a]", "a,b", " a ", "%a", "@a", "`a", "| a", "> a", "---", "...", "?", ": a", "\u202e", "💩",
    "0.5",
])  # fmt: skip
TEXT = WORDS | st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=30)
_PARAMS: dict[str, dict[str, dict[str, st.SearchStrategy[Any]]]] = {
    "attacks": {
        "pgd": {
            "steps": st.integers(1, 100),
            "step_size": st.sampled_from(["2/255", 0.01, "1e-2", None]),
            "start": st.sampled_from(["uniform", "zero"]),
            "clip": st.booleans(),
        },
        "fgsm": {"step_size": st.floats(1e-6, 1.0)},
    },
    "objectives": {"natural": {}, "madry": {}, "mixed": {}},
    "models": {
        "small_cnn": {
            "widths": st.lists(st.integers(1, 64), max_size=3),
            "label": TEXT,
            "options": st.dictionaries(TEXT, st.floats(-1, 1) | st.booleans(), max_size=2),
        },
        "wide_resnet": {"depth": st.integers(10, 40)},
        "run:runs/train/x": {},
        "torchvision:resnet50@IMAGENET1K_V2": {},
        "x.safetensors": {},
    },
    "optimizers": {
        "sgd": {"lr": st.floats(1e-6, 10), "nesterov": st.booleans()},
        "adamw": {"betas": st.lists(st.floats(0, 0.999), min_size=2, max_size=2)},
    },
    "schedules": {"cyclic": {}, "one_cycle": {}},
    "regularizers": {"gradalign": {}, "nuclear": {}},
    "steps": {"minmax": {}, "free": {}},
    "hooks": {"awp": {}, "ema": {}, "swa": {}},
    "trackers": {"tensorboard": {}},
    "defences": {"energy": {}, "bit_depth": {"bits": st.integers(1, 8)}},
}
_REQUIRED = {"depth"}
_SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"[A-Za-z0-9_.][A-Za-z0-9._-]{0,63}", fullmatch=True).filter(
        lambda name: set(name) != {"."}
    ),
    "device": st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:3"]),
    "data.name": st.sampled_from(["digits", "fake", "mnist", "folder:a b/ü", "npz:~/x.npz"]),
    "model.normalize": st.sampled_from([None, "imagenet", "0.5,0.25", "1/2,0.5,.5,1,1,1e0"]),
    "data.channels": st.sampled_from([None, 1, 3]),
    "data.classes": st.sampled_from([None, ["cat", "dog"], "names.txt"]),
    "data.splits.ignore": st.lists(TEXT, max_size=2),
    "certify.radii": st.sampled_from([None, [0.1], [0.05, "8/255"]]),
    "certify.smoothing.n0": st.integers(1, 100),
    "certify.smoothing.n": st.integers(100, 10**6),
    "thresholds": st.fixed_dictionaries(
        {},
        optional={
            "clean_acc": st.sampled_from([{"min": 0.8}, {"min": "8/255", "mode": "point"}]),
            "robust_acc@l2:0.5": st.sampled_from([{"min": 0, "mode": "prove"}, {"min": "1/3", "max": None}]),
            "robust_acc_drop": st.sampled_from([{"max": 0.02, "baseline": "runs/a.b/c"}, {"max": 1}]),
        },
    ),
    "eval.surrogate.models": st.lists(st.sampled_from(["run:a b", "x.safetensors", "small_cnn"]), max_size=2),
    "eval.target": st.sampled_from([None, "random", "least-likely", 0, 7]),
}


def numbers(low: float, high: float) -> st.SearchStrategy[Any]:
    """Floats and fractions in [low, high]."""
    fractions = [f"{k}/255" for k in (1, 2, 4, 8, 16, 51, 128, 255) if low <= k / 255 <= high]
    plain = st.floats(low, high, allow_subnormal=False) | st.integers(-(-int(low) // 1), int(high)).filter(
        lambda v: low <= v <= high
    )
    return plain | st.sampled_from(fractions) if fractions else plain


def _value(info: FieldInfo, annotation: Any, path: str) -> st.SearchStrategy[Any]:
    if get_origin(annotation) is Annotated:
        return _value(info, get_args(annotation)[0], path)
    if get_origin(annotation) in (Union, types.UnionType):
        return st.one_of(*(_value(info, part, path) for part in get_args(annotation)))
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if get_origin(annotation) is dict:
        return st.dictionaries(
            st.sampled_from(["clean_acc", "robust_acc", "robust_acc@linf:8/255"]), numbers(0, 1), max_size=2
        )
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return sections(annotation, f"{path}.")
    if annotation is types.NoneType:
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return TEXT
    bounds = {
        key: getattr(item, key)
        for item in info.metadata
        for key in ("ge", "gt", "le", "lt")
        if getattr(item, key, None) is not None
    }
    low, high = bounds.get("ge", bounds.get("gt", 0)), bounds.get("le", bounds.get("lt", 10**6))
    if annotation is int:
        return st.integers(low, high - ("lt" in bounds)) | st.integers(low, max(low, min(high - 1, 99))).map(
            str
        )
    return numbers(low + 1e-6 * ("gt" in bounds), high - 1e-6 * ("lt" in bounds))


@st.composite
def specs(draw: st.DrawFn, registry: str) -> Any:
    """A spec of one of the registry's entries with some of its parameters; sometimes the bare name."""
    name = draw(st.sampled_from(sorted(_PARAMS[registry])))
    params = {
        key: draw(value)
        for key, value in _PARAMS[registry][name].items()
        if key in _REQUIRED or draw(st.booleans())
    }
    return {"name": name, **params} if params or draw(st.booleans()) else name


@st.composite
def sections(draw: st.DrawFn, cls: type[BaseModel], path: str = "") -> dict[str, Any]:
    """A valid mapping for `cls`: any subset of its keys."""
    raw: dict[str, Any] = {}
    for key, info in cls.model_fields.items():
        if draw(st.booleans()):
            raw[key] = draw(_field(info, f"{path}{key}"))
    for group in (getattr(cls, "exclusive", ()),):
        for extra in [key for key in group if raw.get(key) is not None][1:]:
            del raw[extra]
    if (
        cls.__name__ == "BallConfig"
        and isinstance(raw.get("eps"), (int, float, str))
        and raw.get("norm", "linf") == "linf"
    ):
        raw["eps"], raw["allow_large_eps"] = draw(numbers(1e-4, 1)), True
    if cls.__name__ == "BallConfig" and raw.get("norm") == "l0" and raw.get("eps") is not None:
        raw["eps"] = draw(st.integers(1, 50))  # pixels
    if cls.__name__ == "Config":
        balls = raw.get("ball", [])
        if any(ball.get("norm") == "l0" for ball in (balls if isinstance(balls, list) else [balls])):
            raw.get("certify", {}).pop("radii", None)  # lengths, which are no numbers of pixels
    return raw


def _field(info: FieldInfo, path: str) -> st.SearchStrategy[Any]:
    if path in _SPECIAL:
        return _SPECIAL[path]
    annotation = info.annotation
    registry = next((item.registry for item in info.metadata if hasattr(item, "registry")), None)
    if registry is not None and get_origin(annotation) is list:
        return st.lists(specs(registry), min_size=1, max_size=3)
    if registry is not None and get_origin(annotation) in (Union, types.UnionType):
        return st.none() | specs(registry)
    if isinstance(annotation, type) and issubclass(annotation, ModelConfig):
        extras = st.fixed_dictionaries(
            {}, optional={"weights": TEXT | st.none(), "normalize": _SPECIAL["model.normalize"]}
        )
        return st.tuples(specs("models"), extras).map(
            lambda pair: {**({"name": pair[0]} if isinstance(pair[0], str) else pair[0]), **pair[1]}
        )
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return specs(registry or "")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return sections(annotation, f"{path}.")
    if path == "data.augment":
        return st.sampled_from(["auto", "none"]) | sections(Augment)
    if path == "ball":
        one = sections(BallConfig, "ball.")
        several = st.lists(one, min_size=2, max_size=3, unique_by=lambda ball: ball.get("norm", "linf"))
        return one | several
    if path == "ball.eps":
        return st.none() | numbers(1e-4, 1)
    return _value(info, annotation, path)


def raw_configs() -> st.SearchStrategy[dict[str, Any]]:
    """Valid configs as a file would say them."""
    return sections(Config).map(_of_one_unit)


def _of_one_unit(raw: dict[str, Any]) -> dict[str, Any]:
    """A config without step sizes where there are several balls, which have none in common."""
    return _stripped(raw) if isinstance(raw.get("ball"), list) else raw


def _stripped(raw: Any) -> Any:
    if isinstance(raw, list):
        return [_stripped(item) for item in raw]
    if isinstance(raw, dict):
        return {key: _stripped(item) for key, item in raw.items() if key != "step_size"}
    return raw
