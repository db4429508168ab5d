"""Whether `data.extra` holds images of the test split: document, picture and alarm of a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustcli.data.bundle import DataBundle
from robustcli.data.mixture import JoinedSplit, MixedSplit
from robustcli.errors import Interrupted, RobustCliError
from robustcli.evaluation.leakage.search import Found, Images, Measure, search
from robustcli.jobs.trainrun import TrainRun
from robustcli.records.alarm import Alarm
from robustcli.reporting.pictures.files import save_pictures
from robustcli.reporting.pictures.leakage import Pair, leakage_picture
from robustcli.store.run import Run
from robustcli.terminal.console import Console

_LISTED, _SHOWN = 100, 12  # pairs in the CSV beside the picture, and in the picture
_NAMED = 10  # pairs in the document


def leakage_after(training: TrainRun, console: Console, stop: Callable[[], None]) -> dict[str, Any]:
    """{} or {leakage: …} of a training that has ended; writes the picture of the closest pairs.

    The training counts, and this look does not: what goes wrong in it is a warning.
    """
    setting, run, mixed = training.setting, training.run, training.train_split
    extra = mixed.extra if isinstance(mixed, MixedSplit) else None
    if not isinstance(extra, JoinedSplit) or not isinstance(run, Run) or not setting.config.data.leakage:
        return {}
    if training.ranks.world > 1:  # the others would wait for it, and not long enough
        console.warn("test images in data.extra are looked for by one process: robustcli data check does it")
        return {}
    try:
        told, pairs = look(setting.data, extra, setting.device, console, training.trainer.published, stop)
        save_pictures([leakage_picture(pairs[:_LISTED], told, _SHOWN)], run.path / "plots")
    except Interrupted:
        console.warn("the look for test images in data.extra was interrupted; the training has ended well")
        return {}
    except Exception as error:  # whatever it is, the training has ended well
        reason = error.line() if isinstance(error, RobustCliError) else f"{type(error).__name__}: {error}"
        console.warn(f"no look for test images in data.extra: {reason}")
        return {}
    return {"leakage": told}


def look(
    data: DataBundle,
    extra: JoinedSplit,
    device: torch.device,
    console: Console,
    model: nn.Module | None,
    stop: Callable[[], None],
) -> tuple[dict[str, Any], list[Pair]]:
    """(what stands in the document, the pairs of the picture, the closest first); says what was found.

    model: whose features are compared too; None for pixels alone.
    """
    passes = 1 if model is None else 2
    total = passes * (len(data.test) + len(data.train) + len(extra))
    with console.progress(total, "looking for test images in data.extra") as bar:
        images = Images(data.test, data.train, extra, device, lambda count: bar.advance(count), stop)
        found = search(images, model)
    order = _order(found)
    pairs = _pairs(images, extra, found, order[:_LISTED])
    told = _told(found, len(data.train), pairs[:_NAMED])
    if told["level"] != "none":
        told["alarm"] = _alarm(told)
        console.warn(told["alarm"])
    else:
        console.info(f"data.extra: no copy of the {found.n} test images among {found.m} extra ones")
    return told, pairs


def _order(found: Found) -> Tensor:
    """The test images, those with an exact copy first, then by the distance in usual distances."""
    closeness = found.pixels.distance / found.pixels.reference.clamp_min(1e-9)
    if found.features is not None:
        by_features = found.features.distance / found.features.reference.clamp_min(1e-9)
        closeness = torch.where(found.features.near & ~found.pixels.near, by_features, closeness)
    return torch.where(found.exact, -1.0, closeness).argsort(stable=True)


def _pairs(images: Images, extra: JoinedSplit, found: Found, order: Tensor) -> list[Pair]:
    """The pairs of these test images; the first of them with their pixels."""
    position = found.pixels.position
    if found.features is not None:
        only = found.features.near & ~found.pixels.near & ~found.exact
        position = torch.where(only, found.features.position, position)
    chosen = position[order]
    files = zip(images.test.files(order), extra.files(chosen), strict=True)
    rows = extra.stored_ids(chosen)
    pairs = [
        _pair(images, found, int(i), int(row), file) for i, row, file in zip(order, rows, files, strict=True)
    ]
    for k, pair in enumerate(pairs[:_SHOWN]):
        (x, _, _), *_ = images.test.stream([order[k : k + 1]], images.device)
        (e, _, _), *_ = images.extra.stream([chosen[k : k + 1]], images.device)
        pairs[k] = replace(pair, pixels=(_bytes(x), _bytes(e)))
    return pairs


def _bytes(x: Tensor) -> Any:
    return (x[0].cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _pair(images: Images, found: Found, i: int, row: int, files: tuple[str | None, str | None]) -> Pair:
    kinds = [("exact", found.exact[i]), ("pixels", found.pixels.near[i])]
    if found.features is not None:
        kinds.append(("features", found.features.near[i]))
    features = None
    if found.features is not None:
        features = round(float(found.features.distance[i] / found.features.reference[i].clamp_min(1e-9)), 4)
    return Pair(
        test=int(images.test.ids[i]),
        test_file=files[0] or "",
        extra=row,
        extra_file=files[1] or "",
        distance=round(float(found.pixels.distance[i]), 5),
        ratio=round(float(found.pixels.distance[i] / found.pixels.reference[i].clamp_min(1e-9)), 4),
        features=features,
        found=", ".join(kind for kind, is_so in kinds if is_so),
    )


def _told(found: Found, train: int, pairs: list[Pair]) -> dict[str, Any]:
    """The key `leakage` of a document."""
    measures = {"pixels": _measure(found.pixels)}
    if found.features is not None:
        measures["features"] = _measure(found.features)
    exact, near = int(found.exact.sum()), [measure["near"] for measure in measures.values()]
    many = [measure["more_than_training_images"] for measure in measures.values()]
    level = "note" if any(near) else "none"
    if exact or any(many):
        level = "suspect"
    sizes = {"test": found.n, "train": train, "extra": found.m}
    return {
        "level": level,
        **sizes,
        "exact": exact,
        **measures,
        "closest": [pair.to_json() for pair in pairs],
    }


def _measure(measure: Measure) -> dict[str, Any]:
    rule, near = measure.rule, int(measure.near.sum())
    if rule is None:
        return {
            "near": 0,
            "rule": "none: too few images to calibrate one",
            "more_than_training_images": False,
        }
    return {
        "near": near,
        "rule": rule.words,
        "ratio": round(rule.ratio, 4),
        "spread": round(rule.spread, 4),
        "growth": round(rule.growth, 4),
        "near_in_training_images": rule.honest,
        "chance": round(rule.chance(near), 6),
        "more_than_training_images": rule.unlikely(near),
    }


def _alarm(told: dict[str, Any]) -> str:
    """The line of the alarm, or of the note."""
    counts = [f"{told['exact']} exact copies"] * bool(told["exact"])
    for name in ("pixels", "features"):
        measure = told.get(name, {})
        if measure.get("near"):
            inside = measure["near_in_training_images"]
            counts.append(f"{measure['near']} near copies by {name} (the training images: {inside})")
    evidence = f"of {told['test']} test images data.extra has {', '.join(counts)}"
    remedy = "look at the closest pairs, and leave copies out of data.extra"
    return Alarm("extra-holds-test", told["level"], evidence, remedy).line()
