"""The whole config, and what its classes say of themselves: spec paths, known keys, JSON schema."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError, field_validator

from robustcli.config.certify_sections import CertifyConfig
from robustcli.config.guard_sections import GuardConfig
from robustcli.config.number import INT_LIMIT, Flag, Int, Scalar, Text, parse_text
from robustcli.config.sections import BallConfig, Balls, DataConfig, SearchConfig
from robustcli.config.spec import From, ModelConfig, Section, Spec
from robustcli.config.thresholds import SECTION, ThresholdConfig
from robustcli.config.tree import KeyPath, Rules
from robustcli.config.verb_sections import AttackConfig, EvalConfig, TrainConfig
from robustcli.config.wording import shown


def _run_name(value: Any) -> str:
    """A directory name and nothing else: no separator, no `..`, no option."""
    text = parse_text(value)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text) or set(text) == {"."} or text.startswith("-"):
        rule = "a run name is 1 to 64 of the characters A-Z a-z 0-9 . _ - and does not start with -"
        raise ValueError(f"{rule}, got {shown(text)}")
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
    ball: Balls = Field(
        default=BallConfig(), description="threat model; a list of several is their union, see train.union"
    )
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
    defences: Annotated[list[Spec], From("defences")] = Field(
        default=[], max_length=16, description="what stands in front of a model that is measured, in order"
    )
    guard: GuardConfig = Field(default=GuardConfig(), description="how defences are fitted")
    certify: CertifyConfig = Field(default=CertifyConfig(), description="what is proven")
    thresholds: dict[Text, ThresholdConfig] = Field(
        default={},
        max_length=64,
        description="metric -> what gate asks of it, such as {robust_acc@linf:8/255: {min: 0.45}}",
    )

    @property
    def balls(self) -> list[BallConfig]:
        """The threats: one, or those of a union."""
        return self.ball if isinstance(self.ball, list) else [self.ball]

    @property
    def union(self) -> bool:
        """Whether there are several threats."""
        return isinstance(self.ball, list)

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", value):
            raise ValueError(f"expected auto, cpu, mps, cuda or cuda:N, got {shown(value)}")
        return value


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The first section or spec class inside an annotation such as `Augment | None` or `list[Spec]`.

    A mapping whose keys are the user's, such as `thresholds`, is one value and no section.
    """
    if get_origin(annotation) is dict:
        return None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = map(_model_of, get_args(annotation))
    return next((model for model in inside if model is not None), None)


def _walk(cls: type[BaseModel], at: KeyPath = ()) -> Iterator[tuple[KeyPath, type[BaseModel], list[Any]]]:
    """(path, class, metadata) of every section and spec below `cls`; elements of a list are at `*`."""
    for name, info in cls.model_fields.items():
        model = _model_of(info.annotation)
        if model is None:
            continue
        for path in _stands_at(info.annotation, (*at, name)):
            yield path, model, list(info.metadata)
            yield from _walk(model, path)


def _stands_at(annotation: Any, path: KeyPath) -> list[KeyPath]:
    """Where the section of an annotation stands: at `path`, in a list at `path.*`, or at both."""
    if get_origin(annotation) is list:
        return [(*path, "*")]
    return [path, (*path, "*")] if _in_a_list(annotation) else [path]


def _in_a_list(annotation: Any) -> bool:
    """Whether a list of sections is one of the choices of an annotation."""
    if get_origin(annotation) is list:
        return _model_of(annotation) is not None
    return any(map(_in_a_list, get_args(annotation)))


@cache
def spec_fields() -> dict[KeyPath, tuple[str, type[Spec]]]:
    """Path of every spec -> (registry attribute, class)."""
    fields: dict[KeyPath, tuple[str, type[Spec]]] = {}
    for path, cls, metadata in _walk(Config):
        origin = next((item for item in metadata if isinstance(item, From)), None)
        if origin is not None and issubclass(cls, Spec):
            fields[path] = (origin.registry, cls)
    return fields


@cache
def rules() -> Rules:
    """What merging layers must know."""
    exclusive: dict[KeyPath, tuple[str, ...]] = {}
    for path, cls, _ in _walk(Config):
        if issubclass(cls, Section) and cls.exclusive:
            exclusive[path] = cls.exclusive
    return Rules(frozenset(spec_fields()), exclusive, _takes, keyed={("ball",): "norm"})


@cache
def _places() -> dict[KeyPath, Any]:
    """Path of every section, spec, list of them and element of such a list -> the type that stands there."""
    places: dict[KeyPath, Any] = {path: cls for path, cls, _ in _walk(Config) if path[-1] == "*"}
    for at, cls in _classes().items():
        for name, info in cls.model_fields.items():
            path = (*at, name)
            if _model_of(info.annotation) is not None:
                places[path] = info.rebuild_annotation()
    return places


@cache
def _adapter(path: KeyPath) -> TypeAdapter[Any]:
    return TypeAdapter(_places()[path])


def _takes(path: KeyPath, value: Scalar) -> bool:
    """Whether the scalar `value` may stand at `path`: `none` for data.augment, a name for a spec."""
    if path not in _places():
        return True
    try:
        _adapter(path).validate_python(value)
    except ValidationError:
        return False
    return True


def _classes() -> dict[KeyPath, type[BaseModel]]:
    """Path of every section and spec -> its class; () is the top level."""
    return {(): Config} | {path: cls for path, cls, _ in _walk(Config)}


@cache
def known_keys() -> dict[KeyPath, list[str]]:
    """Path of every section and spec -> its keys, in order; () is the top level, `*` any key or index."""
    keys = {path: list(cls.model_fields) for path, cls in _classes().items()}
    return {**keys, (SECTION, "*"): list(ThresholdConfig.model_fields)}


@cache
def text_keys() -> frozenset[KeyPath]:
    """Paths of the keys whose value is text (or null)."""
    keys: set[KeyPath] = set()
    for path, cls in _classes().items():
        keys |= {(*path, name) for name, info in cls.model_fields.items() if _is_text(info.annotation)}
    return frozenset(keys)


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_text(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return all(_is_text(part) for part in get_args(annotation) if part is not types.NoneType)
    return annotation is str


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _standard(schema: Any) -> Any:
    """`schema` with JSON Schema's names of bounds (`minimum`) where pydantic left its own (`ge`)."""
    if isinstance(schema, list):
        return [_standard(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {_standard_key(key, value): _standard(value) for key, value in schema.items()}


def _standard_key(key: str, value: Any) -> str:
    """`minimum` for the bound `ge: 1`; a property of the name `ge` would hold a schema, not a number."""
    if isinstance(value, (int, float)):
        return _BOUNDS.get(key, key)
    return key


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a config file, for editors. It knows no parameters of specs."""
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
