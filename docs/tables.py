"""The tables of the documentation, made from registrations, signatures, docstrings and the commands.

    python docs/tables.py            # writes them between their markers
    python docs/tables.py --check    # exit 1 where a page is not what would be written

A page holds a table between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from robustcli import registry

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))
import cli_page  # noqa: E402 - a file beside this one

BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
CLASSES = 10
Row = dict[str, str]


def value(thing: object) -> str:
    """As YAML writes it."""
    if thing is None:
        return "null"
    if thing == ():
        return "[]"
    if isinstance(thing, bool):
        return str(thing).lower()
    return str(thing)


def choices(annotation: Any) -> list[str]:
    """The words that a parameter may be, where it is one of some."""
    if get_origin(annotation) is Literal:
        return [value(choice) for choice in get_args(annotation)]
    return [word for part in get_args(annotation) for word in choices(part) if get_origin(annotation)]


def parameters(fn: Callable[..., Any]) -> str:
    """`steps=10`, `loss=null` (ce, margin): names, defaults, and the words to choose from."""
    cells = []
    for own in registry.parameters(fn).values():
        words = [word for word in choices(own.annotation) if word not in ("null", value(own.default))]
        more = f" (or {', '.join(words)})" if words else ""
        default = "" if own.default is inspect.Parameter.empty else f"={value(own.default)}"
        cells.append(f"`{own.name}{default}`{more}")
    return ", ".join(cells)


def paper(fn: Callable[..., Any]) -> str:
    """The first paper that the docstring names."""
    source = (inspect.getdoc(fn) or "").partition("Source:")[2]
    match = re.search(r"arXiv:\d{4}\.\d{4,5}|doi:10\.[\w./-]+\w|openreview\.net/\S+?(?=[,.;) ]|$)", source)
    return match[0] if match else ""


def formula(fn: Callable[..., Any]) -> str:
    """The first line of the docstring as code, without what it costs; a bare bar would end the cell."""
    line = (inspect.getdoc(fn) or "").partition("\n")[0]
    shown = re.sub(r";\s+(cost )?[\w +]+ passes.*", "", line).rstrip(".").replace("|", "\\|")
    return f"`{shown}`"


def attacks() -> Iterable[Row]:
    """One row for each attack; passes at the defaults, 10 classes and the first norm."""
    for entry in registry.attacks:
        facts, defaults = entry.facts, {p.name: p.default for p in registry.parameters(entry.fn).values()}
        yield {
            "attack": f"`{entry.name}`",
            "norms": "any (unused)" if facts.kind == "unbounded" else ", ".join(facts.norms),
            "kind": facts.kind,
            "needs": facts.needs,
            "passes": f"{facts.passes(defaults, CLASSES, facts.norms[0]):,}",
            "parameters": parameters(entry.fn),
            "when": facts.use,
            "paper": paper(entry.fn),
        }


def ensembles() -> Iterable[Row]:
    """One row for each list of attacks under one name."""
    for entry in registry.ensembles:
        yield {
            "ensemble": f"`{entry.name}`",
            "parameters": parameters(entry.fn),
            "when": entry.facts.use,
            "paper": paper(entry.fn),
        }


def transforms() -> Iterable[Row]:
    """One row for each input transform of momentum attacks."""
    for entry in registry.transforms:
        yield {
            "transform": f"`{entry.name}`",
            "the model sees": formula(entry.fn),
            "copies": value(entry.facts.copies),
            "when": entry.facts.use,
            "paper": paper(entry.fn),
        }


def objectives() -> Iterable[Row]:
    """One row for each outer loss."""
    for entry in registry.objectives:
        passes = value(entry.facts.passes)
        if entry.facts.per_rival:
            passes = f"{passes} + {entry.facts.per_rival} (K - 1)"
        if entry.facts.copies:
            passes = f"{passes} `{entry.facts.copies}`"
        if entry.facts.inner is not None:
            attack = f"A `{entry.facts.copies}`" if entry.facts.copies else "A"
            passes = f"{attack} + {passes}"
        yield {
            "objective": f"`{entry.name}`",
            "loss": formula(entry.fn),
            "attack ascends": value(entry.facts.inner or "nothing"),
            "passes": passes,
            "parameters": parameters(entry.fn),
            "what for": entry.facts.use,
            "paper": paper(entry.fn),
        }


def regularizers() -> Iterable[Row]:
    """One row for each term beside the objective."""
    for entry in registry.regularizers:
        yield {
            "regularizer": f"`{entry.name}`",
            "term": formula(entry.fn),
            "passes": f"up to {entry.facts.passes}",
            "parameters": parameters(entry.fn),
            "what for": entry.facts.use,
            "paper": paper(entry.fn),
        }


def steps() -> Iterable[Row]:
    """One row for each training step."""
    for entry in registry.steps:
        yield {
            "train.step": f"`{entry.name}`",
            "what": formula(entry.fn),
            "attack": "`adversary`" if entry.facts.attacks else "its own",
            "parameters": parameters(entry.fn),
            "paper": paper(entry.fn),
        }


def hooks() -> Iterable[Row]:
    """One row for each training hook."""
    for entry in registry.hooks:
        again = entry.facts.extra_losses
        yield {
            "train.hooks": f"`{entry.name}`",
            "what": formula(entry.fn),
            "costs": "the passes of the objective once more" if again else "no pass",
            "parameters": parameters(entry.fn),
            "paper": paper(entry.fn),
        }


def defences() -> Iterable[Row]:
    """One row for each defence in front of a deployed model; passes at the defaults."""
    for entry in registry.defences:
        facts = entry.facts
        yield {
            "defence": f"`{entry.name}`",
            "kind": facts.kind,
            "what": formula(entry.fn),
            "random": value(facts.random),
            "gradient": "its own" if facts.differentiable else "surrogate",
            "fit": facts.fit or "nothing",
            "passes": value(
                facts.passes({p.name: p.default for p in registry.parameters(entry.fn).values()})
            ),
            "parameters": parameters(entry.fn),
            "when": facts.use,
            "paper": paper(entry.fn),
        }


def datasets() -> Iterable[Row]:
    """One row for each data set."""
    for entry in registry.datasets:
        facts = entry.facts
        presets = ", ".join(f"{norm} {eps:.4g}" for norm, eps in facts.presets.items())
        yield {
            "data set": f"`{entry.name}:PATH`" if facts.path else f"`{entry.name}`",
            "what": entry.summary.rstrip(".").replace("|", "\\|"),
            "usual radius": presets or "to be set",
        }


def layouts() -> Iterable[Row]:
    """Published weights: which model reads them, and what their files do not say."""
    for entry in registry.layouts:
        facts = entry.facts
        if facts.published == "ours":
            continue
        told = [f"`{key}={by_classes(value)}`" for key, value in facts.means.items()]
        yield {
            "--model": f"`{facts.arch}`",
            "weights of": facts.published,
            "known by": f"`{facts.marks[-1]}`",
            "no tensor tells": ", ".join(told).lower(),
            "--normalize, where the file has none": by_classes(facts.normalize),
        }


def by_classes(value: Any) -> str:
    """``4 (10 classes); 16 (else)`` of what depends on the number of classes; else the value."""
    if not isinstance(value, Mapping):
        return str(value)
    if [*value] == [0]:
        return str(value[0])
    return "; ".join(f"{each} ({f'{k} classes' if k else 'else'})" for k, each in value.items())


def plain(kind: registry.Registry[Any, Any], head: str) -> Iterable[Row]:
    """One row for each entry of a registry without facts."""
    for entry in kind:
        yield {
            head: f"`{entry.name}`",
            "what": formula(entry.fn),
            "parameters": parameters(entry.fn),
            "paper": paper(entry.fn),
        }


TABLES: dict[str, Callable[[], Iterable[Row]]] = {
    "attacks": attacks,
    "ensembles": ensembles,
    "transforms": transforms,
    "objectives": objectives,
    "regularizers": regularizers,
    "steps": steps,
    "hooks": hooks,
    "datasets": datasets,
    "defences": defences,
    "layouts": layouts,
    "optimizers": lambda: plain(registry.optimizers, "train.optimizer"),
    "models": lambda: plain(registry.models, "model"),
    "schedules": lambda: plain(registry.schedules, "train.schedule"),
}


#: Name -> a part of a page that is more than one table.
PARTS: dict[str, Callable[[], str]] = {"commands": cli_page.reference}


def table(name: str) -> str:
    """One table in Markdown, or one such part."""
    if name in PARTS:
        return PARTS[name]()
    rows = list(TABLES[name]())
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rewritten(page: str) -> str:
    """The text of a page with its tables made anew."""
    return BLOCK.sub(lambda match: match[1] + table(match[2]) + match[3], page)


def main() -> int:
    """Write all pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
    stale = {path: new for path, text in old.items() if (new := rewritten(text)) != text}
    for path, text in stale.items():
        print(f"{path.name}: {'out of date; run make docs' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
