"""The reference pages: every configuration key, and every registered method, from schema and signatures.

python docs/reference.py            # writes docs/configuration.md and docs/methods/
python docs/reference.py --check    # exit 1 where a page is not what would be written
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from robustcli import registry
from robustcli.config.number import format_number
from robustcli.config.schema import Config, _model_of
from robustcli.config.spec import From, Section, Spec

DOCS = Path(__file__).resolve().parent
MADE = "<!-- made by `make docs` from {source}: edit that, not this -->"
#: Last word of a key -> the unit of its number. A number without an entry fails the making of the page.
UNITS = {
    "none": "alpha batch_size flip lr norm probability threads seed split_seed scale amplify fpr share tv",
    "share": "area smallest val_fraction test_fraction extra_ratio max_bad eps_until eps_from steps_until "
    "fail_under",
    "pixel units of [0, 1]": "eps sigma radii enough step_size dark bright",
    "pixels": "crop translate size",
    "degrees": "rotate rotation",
    "images": "val_n n first shard_size checks micro_batch save gallery batch_size skip examples",
    "steps": "steps steps_start save_every alpha_steps",
    "epochs": "epochs validate_every",
    "minutes": "minutes",
    "seconds": "timeout budget",
    "draws": "n0 eot",
    "processes": "workers",
    "channels": "channels",
    "checkpoints": "keep",
    "validations": "patience",
    "gradient norm": "grad_clip",
    "factor on eps": "eps_start",
    "pixel value": "max_value",
    "class": "target",
}
OWN = {
    "certify.smoothing.n": "draws",
    "data.augment.scale": "share",
    "certify.smoothing.alpha": "probability",
}
#: Arguments that the caller gives, in the docstrings of registered functions.
CALLERS = ("oracle", "x", "ball", "model", "batch", "info", "settings", "run_dir", "config", "norm")
CALLERS += ("rng", "copy")
#: Registry -> (title of its page, the key of a configuration that names its methods, an example of a value).
FAMILIES = {
    "attacks": ("Attacks", "attacks", "attacks=[{{name: {name}}}]"),
    "ensembles": ("Attack ensembles", "attacks", "attacks=[{{name: {name}}}]"),
    "transforms": ("Input transforms", "attacks", "attacks=[{{name: mi_fgsm, transforms: [{name}]}}]"),
    "objectives": ("Objectives", "objective", "objective={name}"),
    "regularizers": ("Regularizers", "regularizers", "regularizers=[{{name: {name}}}]"),
    "steps": ("Training steps", "train.step", "train.step={name}"),
    "hooks": ("Training hooks", "train.hooks", "train.hooks=[{{name: {name}}}]"),
    "optimizers": ("Optimizers", "train.optimizer", "train.optimizer={name}"),
    "schedules": ("Schedules", "train.schedule", "train.schedule={name}"),
    "models": ("Models", "model", "model={name}"),
    "defences": ("Defences", "defences", "defences=[{{name: {name}}}]"),
    "datasets": ("Data sets", "data.name", "data.name={name}"),
    "trackers": ("Trackers", "train.trackers", "train.trackers=[{name}]"),
}


def value(thing: Any) -> str:
    """As YAML writes it."""
    if thing is None:
        return "null"
    if isinstance(thing, bool):
        return str(thing).lower()
    if isinstance(thing, float):
        return str(format_number(thing))
    if isinstance(thing, Spec):
        extra = "".join(f", {key}: {value(inner)}" for key, inner in thing.params.items())
        return f"{{name: {thing.name}{extra}}}" if extra else thing.name
    if isinstance(thing, (list, tuple)):
        return f"[{', '.join(map(value, thing))}]"
    return "{}" if thing == {} else str(thing)


def written(bound: float) -> str:
    """10,000; 0.5; 2^63 where no digits help."""
    if isinstance(bound, int) and bound >= 2**20 and not bound & (bound - 1):
        return f"2^{bound.bit_length() - 1}"
    return f"{bound:,.12g}"


def bounds(metadata: tuple[Any, ...]) -> str:
    """`>= 1, < 8`: what annotated-types and pydantic say of a number."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    flat = [item for entry in metadata for item in (entry, *getattr(entry, "metadata", ()))]
    return ", ".join(
        f"{sign} {written(getattr(item, name))}"
        for name, sign in signs.items()
        for item in flat
        if getattr(item, name, None) is not None
    )


def span(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What a value may be, in words: `whole number >= 1, or null`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return span(args[0], (*args[1:], *metadata))
    if origin in (Union, types.UnionType):
        parts = [span(part, metadata) for part in args if part is not types.NoneType]
        return ", or ".join([*dict.fromkeys(parts), *["null"] * (types.NoneType in args)])
    if origin is Literal:
        return ", ".join(f"`{value(word)}`" for word in args)
    if origin in (list, tuple):
        return f"list of: {span(args[0])}"
    if origin is dict:
        return f"map to: {span(args[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a registered name, or `{name: …}`" if issubclass(annotation, Spec) else "a map"
    word = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}.get(annotation, "any")
    return f"{word} {bounds(metadata)}".rstrip() if annotation in (int, float) else word


def numeric(annotation: Any) -> bool:
    """Whether a value may be a number."""
    if get_origin(annotation) is Literal:
        return False
    return annotation in (int, float) or any(map(numeric, get_args(annotation)))


def unit(key: str, annotation: Any) -> str:
    """The unit of a number; "" for anything else. Raises KeyError for a number that has none here."""
    if not numeric(annotation):
        return ""
    if key in OWN:
        return OWN[key]
    found = [name for name, words in UNITS.items() if key.rpartition(".")[2] in words.split()]
    if not found:
        raise KeyError(f"{key}: docs/reference.py lacks its unit")
    return found[-1].replace("none", "")


def keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, field) of a section and those below it, in their order."""
    for name, field in section.model_fields.items():
        below = _model_of(field.annotation)
        if below is not None and issubclass(below, Section) and get_origin(field.annotation) is not list:
            if field.default is None or name == "augment":
                yield prefix + name, field
            yield from keys(below, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def row(*cells: str) -> str:
    return f"| {' | '.join(map(cell, cells))} |\n"


def key_row(key: str, field: Any) -> str:
    """One line of the table of keys."""
    annotation, metadata = field.annotation, tuple(field.metadata)
    origin = next((item for item in metadata if isinstance(item, From)), None)
    allowed = span(annotation, metadata)
    if origin is not None:
        allowed = f"[{FAMILIES[origin.registry][0].lower()}](methods/{origin.registry}.md)"
    default = "required" if field.is_required() else f"`{value(field.default)}`"
    return row(f"`{key}`", default, unit(key, annotation), allowed, field.description or "")


def configuration() -> str:
    """The page of all keys, a section each."""
    head = row("key", "default", "unit", "range", "meaning") + row(*["---"] * 5)
    parts: dict[str, str] = {}
    for key, field in keys(Config):
        section = key.partition(".")[0] if "." in key or _model_of(field.annotation) else "General"
        if section in ("model", "objective", "regularizers", "adversary", "attacks", "defences"):
            section = "Methods"
        parts[section] = parts.get(section, "") + key_row(key, field)
    for name, field in ((f"model.{name}", field) for name, field in _model_fields()):
        parts["Methods"] += key_row(name, field)
    order = ["General", "Methods", *(name for name in parts if name not in ("General", "Methods"))]
    tables = "".join(f"\n## {name}\n\n{head}{parts[name]}" for name in order)
    return (
        f"# Every configuration key\n\n{MADE.format(source='the schema, robustcli/config')}\n\n"
        "[Configuration](config.md) tells how files, environment and command line come together. A number "
        "without a unit is a count or has none. `null` means that the program chooses, as the meaning says. "
        f"Parameters of methods stand with [the methods](methods/attacks.md).\n{tables}"
    )


def _model_fields() -> Iterator[tuple[str, Any]]:
    """The keys of `model` beside its name and parameters."""
    model = _model_of(Config.model_fields["model"].annotation)
    assert model is not None
    for name, field in model.model_fields.items():
        if name not in ("name", "plugin"):
            yield name, field


def described(doc: str, names: list[str]) -> dict[str, str]:
    """Parameter -> what the docstring's `Args:` say of it."""
    block = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, flags=re.MULTILINE | re.DOTALL)
    text = " ".join(block[1].split()) if block else ""
    begins = list(re.finditer(r"(?:(?<=^)|(?<=[.;] ))((?:[a-z_0-9]+, )*[a-z_0-9]+): ", text))
    begins = [begin for begin in begins if set(begin[1].split(", ")) & {*names, *CALLERS}]
    if not begins:
        return {}
    ends = [*(begin.start() for begin in begins[1:]), len(text)]
    found: dict[str, str] = {}
    for begin, end in zip(begins, ends, strict=True):
        found |= dict.fromkeys(begin[1].split(", "), text[begin.end() : end].strip())
    return found


def linked(text: str) -> str:
    """Papers as links."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(
        r"(?<![/(])(openreview\.net/\S+?|proceedings\.mlr\.press/\S+?)(?=[,.;) ]|\s|$)", r"<https://\1>", text
    )


def prose(doc: str) -> str:
    """What stands between the first line and `Args:`, as it is laid out."""
    body = doc.partition("\n")[2]
    return re.split(r"^(?:Args|Returns|Raises|Source)\b", body, maxsplit=1, flags=re.MULTILINE)[0].strip()


def source(doc: str) -> str:
    return " ".join(doc.partition("Source:")[2].split())


def cost(kind: str, entry: Any) -> str:
    """What a use of the method costs, from its facts."""
    facts, given = entry.facts, {p.name: p.default for p in registry.parameters(entry.fn).values()}
    if kind == "attacks":
        return f"{facts.passes(given, 10, facts.norms[0]):,} passes a sample at the defaults (10 classes)"
    if kind == "transforms":
        return f"{facts.copies} times the passes of the attack"
    if kind == "objectives":
        attack = "the attack and " if facts.inner else ""
        rival = f" and {facts.per_rival} more for each class but one" if facts.per_rival else ""
        copies = f", times `{facts.copies}`" if facts.copies else ""
        return f"{attack}{facts.passes} passes an image and step{rival}{copies}"
    if kind == "regularizers":
        return f"at most {facts.passes} passes an image and step"
    if kind == "hooks":
        return "the passes of the objective once more" if facts.extra_losses else "no pass"
    if kind == "defences":
        return f"{facts.passes(given)} more passes an answer; to fit: {facts.fit or 'nothing'}"
    return ""


def facts_of(kind: str, entry: Any) -> list[str]:
    """The lines under a method's formula: cost, when, norms, paper."""
    facts, doc = entry.facts, inspect.getdoc(entry.fn) or ""
    norms = getattr(facts, "norms", None)
    lines = {
        "Cost": cost(kind, entry),
        "When": getattr(facts, "use", ""),
        "Norms": ""
        if norms is None
        else "any (unused)"
        if getattr(facts, "kind", "") == "unbounded"
        else ", ".join(norms),
        "Usual radius": ", ".join(f"{n} {value(e)}" for n, e in getattr(facts, "presets", {}).items()),
        "Paper": linked(source(doc)),
    }
    return [f"- **{name}**: {text}" for name, text in lines.items() if text]


def parameter_table(entry: Any) -> str:
    """The parameters with default, range and meaning; "" where there are none."""
    own = registry.parameters(entry.fn)
    said = described(inspect.getdoc(entry.fn) or "", list(own))
    rows = [
        row(
            f"`{p.name}`",
            "required" if p.default is inspect.Parameter.empty else f"`{value(p.default)}`",
            span(p.annotation),
            said.get(p.name, ""),
        )
        for p in own.values()
    ]
    head = row("parameter", "default", "range", "meaning and unit") + row(*["---"] * 4)
    return f"\n{head}{''.join(rows)}" if rows else ""


def method(kind: str, entry: Any) -> str:
    """The section of one method."""
    doc = inspect.getdoc(entry.fn) or ""
    summary = doc.partition("\n")[0]
    name = f"{entry.name}:PATH" if getattr(entry.facts, "path", False) else entry.name
    more = prose(doc)
    told = f"\n```text\n{more}\n```\n" if more else ""
    example = FAMILIES[kind][2].format(name=name)
    facts = "\n".join([f"- **Write**: `{example}`", *facts_of(kind, entry)])
    return f"\n## {entry.name}\n\n`{summary}`\n{told}\n{facts}\n{parameter_table(entry)}"


def family(kind: str) -> str:
    """The page of one registry."""
    title, key, _ = FAMILIES[kind]
    entries = list(getattr(registry, kind))
    index = " · ".join(f"[{entry.name}](#{entry.name.replace('.', '')})" for entry in entries)
    body = "".join(method(kind, entry) for entry in entries)
    made = MADE.format(source="registrations and docstrings")
    return f"# {title}\n\n{made}\n\nNamed by the key `{key}`. {index}\n{body}"


def pages() -> dict[Path, str]:
    """All reference pages with their text."""
    made = {DOCS / "configuration.md": configuration()}
    return made | {DOCS / "methods" / f"{kind}.md": family(kind) for kind in FAMILIES}


def main() -> int:
    """Write all pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    made = pages()
    stale = [
        path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    stale += [path for path in (DOCS / "methods").glob("*.md") if path not in made]
    for path in stale:
        print(f"{path.relative_to(DOCS)}: {'out of date; run make docs' if check else 'written'}")
        if not check and path in made:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path], encoding="utf-8")
        elif not check:
            path.unlink()
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
