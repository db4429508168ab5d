"""The numbers of a run as tables, with the pictures that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from robustcli.proportions import Rate
from robustcli.records.certify import CertificateRow, CertifyRow
from robustcli.records.distance import DistanceRow
from robustcli.records.eval import EvalRow
from robustcli.records.guard import GuardCurveRow, GuardRow
from robustcli.records.sweep import SweepRow
from robustcli.records.train import TrainRow
from robustcli.records.transfer import TransferRow
from robustcli.reporting.cells import Cell, Eps, unit_of
from robustcli.reporting.certify_table import certify_table, status_table
from robustcli.reporting.dossier import Dossier
from robustcli.reporting.guard_table import guard_table
from robustcli.reporting.page.blocks import Block, Bullets, Facts, Figure, Grid, Section, Text
from robustcli.reporting.page.words import ball_of
from robustcli.reporting.record_tables import class_table, eval_table, train_table, union_table
from robustcli.reporting.tables import Table
from robustcli.reporting.transfer_table import matrix_table, pair_table
from robustcli.reporting.weakest import weak_image_table, weakest_images

#: Sections of results: key -> title. Pictures name their section by this key.
SECTIONS = {
    "verdict": "Results",
    "training": "Training",
    "guard": "Guard",
    "certificates": "Certificates",
    "strength": "Strength of the attack",
    "transfer": "Transfer between models",
    "classes": "Per class",
    "examples": "Examples",
}
_MANY = 20  # rows of a table that is folded from here on


def result_sections(run: Dossier, figures: Sequence[Figure], left_out: Sequence[str] = ()) -> list[Section]:
    """The results, section by section; those without a table or a picture are empty.

    left_out: sentences about pictures that are not there.
    """
    found = []
    for key, title in SECTIONS.items():
        tables = _TABLES.get(key, _nothing)(run) if run.rows or run.document else []
        pictures = [figure for figure in figures if figure.picture.section == key]
        found.append(Section(key, title, [*tables, *pictures]))
    notes = Section("pictures", "Pictures left out", [Bullets(left_out)])
    return [*found, notes]


def _nothing(run: Dossier) -> list[Block]:
    return []


def _evaluation(run: Dossier) -> list[Block]:
    rows = run.of(EvalRow)
    if run.verb == "demo" and (models := run.document.get("models")):
        return [Grid(_demo_table(models))]
    by_ball = union_table(rows)
    tables = [eval_table(rows), *([] if by_ball is None else [by_ball])]
    return [Grid(table) for table in tables] if rows else []


def _demo_table(models: Mapping[str, Mapping[str, object]]) -> Table:
    columns = ["model", "ball", "clean accuracy", "robust accuracy", "attacks"]
    lines: list[list[Cell]] = []
    for name, found in models.items():
        n, eps = int(str(found["n"])), float(str(found["eps"]))
        rates = [Rate(round(float(str(found[key])) * n), n) for key in ("clean_acc", "robust_acc")]
        attacks = found.get("attacks")
        labels = [str(one["name"]) for one in attacks] if isinstance(attacks, list) else []
        lines.append([name, Eps(eps, str(found["norm"])), *rates, ", ".join(labels)])
    return Table("natural and robust model", columns, lines, "Brackets: 95 % Wilson interval.")


def _training(run: Dossier) -> list[Block]:
    rows = run.of(TrainRow)
    if not rows:
        return []
    best = run.document.get("best") or {}
    step = next((row.step for row in rows if row.epoch == best.get("epoch")), None)
    ended = run.document.get("ended")
    told = [Text(f"Ended by: {ended}.")] if ended else []
    return [Grid(train_table(rows, best_step=step)), *told]


def _guard(run: Dossier) -> list[Block]:
    blocks: list[Block] = [Grid(guard_table(row, run.of(GuardCurveRow))) for row in run.of(GuardRow)[:1]]
    detectors = run.document.get("detectors")
    if run.verb == "guard fit" and isinstance(detectors, list):
        columns = ["detector", "threshold", "spread"]
        lines = [[str(one.get("label")), one.get("threshold"), one.get("spread")] for one in detectors]
        blocks.append(Grid(Table("thresholds", columns, lines)))
        blocks.append(Facts(_calibration(run)))
    return blocks


def _calibration(run: Dossier) -> list[tuple[str, str]]:
    found = run.document.get("calibration") or {}
    known = ("source", "n", "alarms")
    return [(f"calibration: {key}", str(found[key])) for key in known if key in found]


def _certificates(run: Dossier) -> list[Block]:
    rows, ball = run.of(CertifyRow), ball_of(run)
    if not rows:
        return []
    blocks: list[Block] = [Grid(certify_table(rows))]
    samples = [row for row in run.samples if isinstance(row, CertificateRow)]
    if samples and ball is not None:
        blocks.append(Grid(status_table(samples, ball[1], ball[0])))
    if isinstance(run.document.get("acr"), float):
        blocks.append(Facts([("average certified radius", f"{run.document['acr']:.4g}")]))
    return blocks


def _strength(run: Dossier) -> list[Block]:
    blocks: list[Block] = []
    for key, rows in groupby(run.of(SweepRow), key=lambda row: row.key):
        blocks.append(Grid(_sweep_table(key, list(rows))))
    if distances := run.of(DistanceRow):
        blocks.append(Grid(_distance_table(distances)))
    return blocks


def _sweep_table(key: str, rows: Sequence[SweepRow]) -> Table:
    lines: list[list[Cell]] = [
        [
            Eps(row.value, row.total.norm) if key == "eps" else row.value,
            row.total.clean,
            row.total.robust,
            row.since_half.fell if row.since_half else None,
        ]
        for row in rows
    ]
    columns = [key, "clean accuracy", "robust accuracy", "fell since half"]
    note = "Fell since half: samples that stood at half the value or less and fall here."
    return Table(f"sweep over {key}", columns, lines, f"{note} Brackets: 95 % Wilson interval.")


def _distance_table(rows: Sequence[DistanceRow]) -> Table:
    columns = ["attack", "norm", "samples broken", "a quarter", "half", "three quarters"]
    lines: list[list[Cell]] = [[row.label, row.norm, Rate(row.broken, row.n), *row.quartiles] for row in rows]
    units = " or ".join(dict.fromkeys(unit_of(row.norm) for row in rows))
    note = f"The last three: radius that breaks so many samples, in {units}."
    return Table("distance to the nearest wrong answer", columns, lines, note)


def _transfer(run: Dossier) -> list[Block]:
    rows = run.of(TransferRow)
    if not rows:
        return []
    tables = (matrix_table(rows, "transfer"), pair_table(rows))
    names = [(row.source, row.source_reference) for row in rows if row.source == row.target]
    grids = [Grid(table) for table in tables if table is not None]
    return [*grids, Facts([(name, reference) for name, reference in names])]


def _classes(run: Dossier) -> list[Block]:
    rows = [row for row in run.of(EvalRow) if row.kind != "attack"]
    if not any(row.per_class for row in rows):
        return []
    table = class_table(rows)
    return [Grid(table, folded=len(table.rows) > _MANY)]


def _examples(run: Dossier) -> list[Block]:
    stages = [row.title for row in run.of(EvalRow) if row.kind == "attack"]
    answers = [row for row in run.answers if row.broken_by is None or row.broken_by in stages]
    found = weakest_images(answers, stages)
    return [Grid(weak_image_table(found))] if found else []


_TABLES: Mapping[str, Callable[[Dossier], list[Block]]] = {
    "verdict": _evaluation,
    "training": _training,
    "guard": _guard,
    "certificates": _certificates,
    "strength": _strength,
    "transfer": _transfer,
    "classes": _classes,
    "examples": _examples,
}
