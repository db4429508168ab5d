"""What a header of shards must say: a right hash does not prove that it makes sense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import BaseModel, ConfigDict, ValidationError

from robustcli.records.alarm import Level

_COUNT = Annotated[int, Ge(0), Lt(2**53)]


class _Part(BaseModel):
    """A part of a stored document. Types are not converted; keys of a newer version are free."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Named(_Part):
    name: str


class _Alarm(_Named):
    level: Level
    evidence: str
    remedy: str


class _Header(_Part):
    model: str
    data: str
    code: str
    plan: dict[str, Any]
    ids: str
    n: _COUNT
    size: Annotated[int, Ge(1), Lt(2**53)]
    about: dict[str, Any]
    alarms: list[_Named]


class _Ball(_Part):
    norm: str
    eps: Annotated[float, Ge(0)]


class _Call(_Part):
    label: str
    name: str
    params: dict[str, Any]
    kind: str
    needs: str
    precision: str


class _Plan(_Part):
    ball: _Ball
    attacks: list[_Call]
    seed: Annotated[int, Ge(0), Lt(2**63)]
    audit: dict[str, Any] | None


class _Attacked(_Part):
    attacks: list[_Call]


class _CertifyPlan(_Part):
    method: str
    ball: _Ball
    radii: Annotated[list[Annotated[float, Gt(0)]], MinLen(1)]
    attacked: _Attacked
    seed: Annotated[int, Ge(0), Lt(2**63)]


class _About(_Part):
    data: str
    split: str
    model: str
    classes: list[str]
    hashes: dict[str, str]


def header_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a stored header. Raises ValueError that names the first one that is missing or wrong."""
    _checked(_Header, document)
    return {name: document[name] for name in _Header.model_fields}


def check_mergeable(
    plan: Mapping[str, Any], about: Mapping[str, Any], alarms: Sequence[Mapping[str, Any]]
) -> None:
    """Raises ValueError unless plan, names and alarms are those of an evaluation, as its tables need them."""
    _check(_Plan, plan, about, alarms)


def check_certified(
    plan: Mapping[str, Any], about: Mapping[str, Any], alarms: Sequence[Mapping[str, Any]]
) -> None:
    """Raises ValueError unless plan, names and alarms are those of a certification."""
    _check(_CertifyPlan, plan, about, alarms)
    if plan["ball"]["eps"] not in plan["radii"]:
        raise ValueError("radii: that of the ball is not among them")


def _check(
    kind: type[_Part],
    plan: Mapping[str, Any],
    about: Mapping[str, Any],
    alarms: Sequence[Mapping[str, Any]],
) -> None:
    _checked(kind, plan)
    _checked(_About, about)
    for alarm in alarms:
        _checked(_Alarm, alarm)


def _checked(kind: type[_Part], document: Mapping[str, Any]) -> None:
    try:
        kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
