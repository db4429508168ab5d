"""The whole config, and what its classes say of themselves: spec paths, known keys, JSON schema."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from robustcli.config.number import INT_LIMIT, Flag, Int, Text, parse_text, shown
from robustcli.config.sections import (
    AttackConfig,
    BallConfig,
    DataConfig,
    EvalConfig,
    SearchConfig,
    TrainConfig,
)
from robustcli.config.spec import From, ModelConfig, Section, Spec
from robustcli.config.tree import Path_, Rules


def _run_name(value: Any) -> str:
    """A directory name and nothing else: no separator, no `..`, no option."""
    text = parse_text(value)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text) or set(text) == {"."} or text.startswith("-"):
        raise ValueError(
            f"a run name is 1 to 64 of the characters A-Z a-z 0-9 . _ - and does not start with -, got {shown(text)}"
        )
    return text


class Config(Section):
    """Everything one verb needs to know. Pixels are in [0, 1]; radii and steps are in the same unit."""

    name: Annotated[str, BeforeValidator(_run_name)] = Field(
        default="run", description="first part of the run directory's name"
    )
    seed: Int = Field(
        default=0, ge=0, lt=INT_LIMIT, description="every random draw of the run is a function of it"
    )
    device: Text = Field(default="auto", description="auto, cpu, mps, cuda or cuda:N")
    threads: Int | None = Field(default=None, ge=1, le=4096, description="CPU threads; null = torch's choice")
    deterministic: Flag = Field(
        default=False, description="refuse operations whose result varies from run to run"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        default="auto", description="of the outer training step"
    )
    out: Text | None = Field(
        default=None, min_length=1, description="exact run directory; null = runs/VERB/NAME-N"
    )
    data: DataConfig = Field(default=DataConfig(), description="images")
    model: Annotated[ModelConfig, From("models")] = Field(
        default=ModelConfig.of("small_cnn"), description="the classifier"
    )
    ball: BallConfig = Field(default=BallConfig(), description="threat model")
    objective: Annotated[Spec, From("objectives")] = Field(
        default=Spec.of("madry"), description="outer training loss"
    )
    regularizers: Annotated[list[Spec], From("regularizers")] = Field(
        default=[], max_length=8, description="terms added to the loss: gradalign, nuclear"
    )
    adversary: Annotated[Spec, From("attacks")] = Field(
        default=Spec.of("pgd", steps=10), description="the attack training runs against"
    )
    search: SearchConfig = Field(default=SearchConfig(), description="how attacks compute")
    train: TrainConfig = Field(default=TrainConfig(), description="training")
    attacks: Annotated[list[Spec], From("attacks")] = Field(
        default=[Spec.of("pgd", steps=20)],
        min_length=1,
        max_length=64,
        description="what eval and attack run",
    )
    eval: EvalConfig = Field(default=EvalConfig(), description="evaluation")
    attack: AttackConfig = Field(default=AttackConfig(), description="output of the attack verb")

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", value):
            raise ValueError(f"expected auto, cpu, mps, cuda or cuda:N, got {shown(value)}")
        return value


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The section or spec class inside an annotation such as `Annotated[Augment, …] | …` or `list[Spec]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_of(part)) is not None), None)


def _walk(cls: type[BaseModel], at: Path_ = ()) -> Iterator[tuple[Path_, type[BaseModel], list[Any]]]:
    """(path, class, metadata) of every section and spec below `cls`; elements of a list are at `*`."""
    for name, info in cls.model_fields.items():
        model = _model_of(info.annotation)
        if model is not None:
            is_list = getattr(info.annotation, "__origin__", None) is list
            path = (*at, name, "*") if is_list else (*at, name)
            yield path, model, list(info.metadata)
            yield from _walk(model, path)


@cache
def spec_fields() -> dict[Path_, tuple[str, type[Spec]]]:
    """Path of every spec -> (registry attribute, class)."""
    found: dict[Path_, tuple[str, type[Spec]]] = {}
    for path, cls, metadata in _walk(Config):
        origin = next((item for item in metadata if isinstance(item, From)), None)
        if origin is not None and issubclass(cls, Spec):
            found[path] = (origin.registry, cls)
    return found


@cache
def rules() -> Rules:
    """What merging layers must know."""
    sections = {
        path: cls.exclusive for path, cls, _ in _walk(Config) if issubclass(cls, Section) and cls.exclusive
    }
    return Rules(frozenset(spec_fields()), sections)


@cache
def known_keys() -> dict[Path_, list[str]]:
    """Path of every section -> its keys, in order; () is the top level."""
    return {(): list(Config.model_fields)} | {path: list(cls.model_fields) for path, cls, _ in _walk(Config)}


@cache
def text_keys() -> frozenset[Path_]:
    """Paths of the keys whose value is text (or null)."""
    sections: list[tuple[Path_, type[BaseModel]]] = [
        ((), Config),
        *((path, cls) for path, cls, _ in _walk(Config)),
    ]
    return frozenset(
        (*path, name)
        for path, cls in sections
        for name, info in cls.model_fields.items()
        if _is_text(info.annotation)
    )


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_text(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return all(_is_text(part) for part in get_args(annotation) if part is not types.NoneType)
    return annotation is str


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _standard(schema: Any) -> Any:
    """Pydantic's names of bounds behind a converter, in the words of JSON Schema."""
    if isinstance(schema, list):
        return [_standard(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        _BOUNDS.get(key, key) if isinstance(value, (int, float)) else key: _standard(value)
        for key, value in schema.items()
    }


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a config file, for editors; parameters of specs are checked at load instead."""
    schema = _standard(Config.model_json_schema(mode="validation"))
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "another .yaml file, relative to this one, whose values are the defaults here",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "robustcli config",
        **{k: v for k, v in schema.items() if k != "title"},
    }
