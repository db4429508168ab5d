"""`{name: pgd, steps: 10}`: a registered name and the parameters that it is bound with.

A bare string is a name alone.
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from typing_extensions import Self

from robustcli.config.number import Number, Text, parse_number, parse_text
from robustcli.foreign import PLUGIN

GUARD = "guard:"  # a model behind its fitted defences
LABELS_ONLY = "(labels only)"  # behind the name of a model of which labels alone are seen
ONNX = "onnx:"  # a file that onnxruntime runs: a black box of scores
COMMAND = "command:"  # a program that answers with labels
_WEIGHT_FILES = (".safetensors", ".npz", ".pt", ".pth", ".ckpt", ".onnx")
_SOURCES = ("run:", GUARD, COMMAND, "torchvision:", "timm:", "hf:", ONNX, PLUGIN)


@dataclass(frozen=True)
class From:
    """Marks a field: its specs name entries of this registry (an attribute of `bind.Registries`)."""

    registry: str


class ParamErrors(ValueError):
    """Parameters that no config can write: (key, what is wrong) of each."""

    def __init__(self, mistakes: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {what}" for key, what in mistakes))
        self.mistakes = mistakes


class Section(BaseModel):
    """Base of every section. Unknown keys are refused, and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    #: Keys of which at most one is set. An upper layer's choice clears a lower one's.
    exclusive: ClassVar[tuple[str, ...]] = ()
    #: What is set where none of `exclusive` is: (key, value).
    usual: ClassVar[tuple[str, Any] | None] = None

    @model_validator(mode="before")
    @classmethod
    def _choose(cls, value: Any) -> Any:
        if cls.usual is None or not isinstance(value, dict):
            return value
        if any(value.get(key) is not None for key in cls.exclusive):
            return value
        key, chosen = cls.usual
        return {**value, key: chosen}

    @classmethod
    def only_one(cls, value: Any, info: ValidationInfo) -> Any:
        """Field validator body: `value` is refused when an earlier key of `exclusive` is set as well."""
        if value is None:
            return None
        for key in cls.exclusive:
            if key != info.field_name and info.data.get(key) is not None:
                keys = ", ".join(cls.exclusive)
                raise ValueError(f"at most one of {keys} can be set, and {key} is; set the other to null")
        return value


class Spec(BaseModel):
    """A registered name and its parameters, as YAML gave them; `bind.bind_spec` converts them."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Text = Field(min_length=1, max_length=4096)

    @classmethod
    def of(cls, name: str, **params: Any) -> Self:
        """Spec.of("pgd", steps=10)."""
        return cls.model_validate({"name": name, **params})

    @property
    def params(self) -> dict[str, Any]:
        """A copy of every key that is not a field of this class."""
        return copy.deepcopy(self.__pydantic_extra__ or {})

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return value

    @model_validator(mode="after")
    def _plain_params(self) -> Self:
        mistakes: list[tuple[str, str]] = []
        for key, value in (self.__pydantic_extra__ or {}).items():
            try:
                parse_text(key)
                _check_plain(value)
            except ValueError as error:
                mistakes.append((key, str(error)))
        if mistakes:
            raise ParamErrors(mistakes)
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        return {"title": schema.pop("title", cls.__name__), "anyOf": [{"type": "string"}, schema]}


def _check_plain(value: Any) -> None:
    """Raises ValueError for what YAML cannot say: not text, finite number, flag, null, list or mapping."""
    if isinstance(value, str):
        parse_text(value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            parse_text(key)
            _check_plain(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, got {value}")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError(f"a {type(value).__name__} cannot be written in a config")


class PluginConfig(Section):
    """Which code of the user's makes the model: a record. It never runs code; only the command line does."""

    file: Text = Field(min_length=1, max_length=255, description="name of the file, without its folder")
    factory: Text = Field(min_length=1, max_length=255, description="name of the function or class in it")
    sha256: Text = Field(pattern="^[0-9a-f]{64}$", description="of the file")

    @property
    def spec(self) -> str:
        """FILE.py:factory, as `--plugin` takes it where the file lies in the working directory."""
        return f"{self.file}:{self.factory}"

    @property
    def label(self) -> str:
        """FILE.py:factory and the beginning of the file's hash, for records and tables."""
        return f"{self.spec}@{self.sha256[:12]}"

    def same_code(self, other: PluginConfig) -> bool:
        """Whether both name one factory of one text; the file may have another name."""
        return (self.factory, self.sha256) == (other.factory, other.sha256)


class ModelConfig(Spec):
    """A registered model with its parameters, or a reference.

    A reference is `run:PATH`, `guard:DIR`, `x.safetensors`, `torchvision:resnet50@IMAGENET1K_V2` and so on.
    """

    weights: Text | None = Field(default=None, description="file with the weights to load into the model")
    normalize: Text | None = Field(
        default=None,
        description="`imagenet`, or `mean,std` (numbers, or three of each), for weights that expect it",
    )
    weights_kind: Literal["auto", "averaged", "raw"] = Field(
        default="auto",
        description="of raw weights and their average (EMA, SWA) in one file; auto takes the average",
    )
    labels_only: bool = Field(
        default=False, description="the model answers with labels alone: no gradient, no score can be used"
    )
    timeout: Number = Field(
        default=30.0, gt=0, description="seconds that a `command:` model may take for one answer"
    )
    plugin: PluginConfig | None = Field(
        default=None, description="which code of yours makes the model; `--plugin FILE.py:factory` writes it"
    )

    @property
    def label(self) -> str:
        """The model's name in records and tables; with a user's code, its file, factory and hash."""
        label = self.name
        if self.plugin is not None:
            own = self.name.startswith(PLUGIN)
            label = self.plugin.label if own else f"{self.name} by {self.plugin.label}"
        return f"{label} {LABELS_ONLY}" if self.labels_only or self.name.startswith(COMMAND) else label

    @property
    def is_reference(self) -> bool:
        """True when the name is a file, a run or another library's model, hence not in our registry."""
        return is_reference(self.name)

    @field_validator("normalize")
    @classmethod
    def _numbers(cls, value: str | None) -> str | None:
        if value is not None and value != "imagenet":
            normalize_numbers(value)
        return value


def is_reference(name: str) -> bool:
    """True for a run, a guard, a weight file, another library's model or code."""
    return name.startswith(_SOURCES) or name.endswith(_WEIGHT_FILES) or names_code(name)


def normalize_numbers(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of `m,s` or `m1,m2,m3,s1,s2,s3` (pixel units of [0, 1]; std > 0). Raises ValueError."""
    parts = text.split(",")
    if len(parts) % 2 or len(parts) > 32:
        raise ValueError(
            f"expected `imagenet` or as many means as deviations, such as 0.5,0.25, got {text[:60]!r}"
        )
    numbers = tuple(parse_number(part) for part in parts)
    half = len(numbers) // 2
    if min(numbers[half:]) <= 0:
        raise ValueError(f"standard deviations must be > 0, got {text[:60]!r}")
    return numbers[:half], numbers[half:]


def names_code(name: str) -> bool:
    """True for `file.py` and `file.py:factory`: user code, which a config may never name."""
    return not name.startswith(COMMAND) and re.search(r"\.py(:|$)", name) is not None
