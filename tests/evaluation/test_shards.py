"""Shards on disk: what is read is what was written, or it does not count."""

import json
import os
import random
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustcli import registry
from robustcli.core.geometry import Ball
from robustcli.errors import DataError, ResourceError, UsageError
from robustcli.evaluation.answers import NONE, Answers
from robustcli.evaluation.header import Header
from robustcli.evaluation.plan import AttackCall, AuditPlan, EvalPlan, Search
from robustcli.evaluation.shardfile import ShardResult, load
from robustcli.evaluation.shards import ShardStore, merge, parse_part, part, shards_of
from robustcli.store import atomic

HASHES = {"model": "a" * 64, "data": "b" * 64, "code": "c" * 64}
LABELS = ("pgd-20", "square")


def silent(text):
    raise AssertionError(text)


def call(label="pgd-20", **params):
    return AttackCall(label, "pgd", registry.attacks.get("pgd").fn, {"steps": 20, **params})


def plan(**more):
    return EvalPlan(
        **{"ball": Ball("linf", 8 / 255), "attacks": [call(), call("square", restarts=2)], **more}
    )


def header(ids, size=4, the_plan=None, **more):
    return Header.of(the_plan or plan(), ids, size=size, **{**HASHES, **more})


def sample_ids(n, seed=0):
    """n different ids in no order, with gaps."""
    return torch.randperm(3 * n + 1, generator=torch.Generator().manual_seed(seed))[:n]


def answers_of(y, correct, bits):
    """Answers that agree with these labels and clean verdicts."""
    clean = torch.where(correct, y, y + 1)
    attacked = torch.where(correct & (bits % 5 > 0), y + 2, NONE)
    files = tuple(None if k % 3 else f"a/{k}.png" for k in bits.tolist())
    return Answers(clean, (bits % 10_001) / 10_000, attacked, files)


def result_of(ids, labels=LABELS, seed=0):
    """Verdicts that depend on (id, seed) alone, so that any two shards of one evaluation agree."""
    bits = (ids * 2654435761 + seed * 40503) >> 3
    correct = bits % 4 > 0
    stages = {label: correct & (bits // (k + 2) % 3 > 0) for k, label in enumerate(labels)}
    return ShardResult(
        ids,
        bits % 10,
        correct,
        answers_of(bits % 10, correct, bits),
        stages,
        dict.fromkeys(labels, 0.1),
        dict.fromkeys(labels, 7),
        {"refused": 0, "asked": len(ids)},
    )


def fill(folder, ids, numbers=None, seed=0, **more):
    """A store with these shards (all without `numbers`) and the ids of each."""
    store = ShardStore(folder, header(ids, **more), silent)
    groups = [ids[places] for places in shards_of(ids, store.size)]
    for number in range(len(groups)) if numbers is None else numbers:
        store.write(number, result_of(groups[number], seed=seed))
    return store, groups


def missing(store):
    """Numbers of the shards that are not proven."""
    numbers = range(store.header.shards)
    return [number for number in numbers if load(store.folder, store.header, number, store._once) is None]


def same(a, b):
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("ids", "y", "correct"))
    stages = list(a.stages) == list(b.stages) and all(
        torch.equal(a.stages[label], b.stages[label]) for label in a.stages
    )
    answers = all(
        torch.equal(getattr(a.answers, name), getattr(b.answers, name))
        for name in ("clean", "confidence", "attacked")
    )
    answers = answers and a.answers.files == b.answers.files
    return (
        tensors
        and answers
        and stages
        and (a.seconds, a.passes, a.tallies) == (b.seconds, b.passes, b.tallies)
    )


# ---- one shard ---------------------------------------------------------------------------------------------

labels_of = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=4, unique=True
)


@given(data=st.data(), rows=st.integers(1, 9), labels=labels_of)
@settings(max_examples=60, deadline=None)
def test_a_shard_reads_back_as_it_was_written(tmp_path_factory, data, rows, labels):
    ids = torch.tensor(sorted(data.draw(st.sets(st.integers(0, 2**63 - 1), min_size=rows, max_size=rows))))
    flags = st.lists(st.booleans(), min_size=rows, max_size=rows)
    correct = torch.tensor(data.draw(flags))
    stages = {label: correct & torch.tensor(data.draw(flags)) for label in labels}
    y = torch.tensor(data.draw(st.lists(st.integers(0, 999), min_size=rows, max_size=rows)))
    seconds = {label: data.draw(st.floats(0, 1e6)) for label in labels}
    answers = answers_of(y, correct, y * 7)
    written = ShardResult(
        ids, y, correct, answers, stages, seconds, {label: 3 for label in labels}, {"asked": 2**40}
    )
    folder = tmp_path_factory.mktemp("shards")
    store = ShardStore(folder, header(ids, size=9), silent)
    assert missing(store) == [0] and store.read(0, ids) is None
    store.write(0, written)
    again = ShardStore(folder, header(ids, size=9), silent)
    assert same(again.read(0, ids), written) and missing(again) == []


def test_the_file_is_one_line_per_sample_between_a_head_and_its_hash(tmp_path):
    _, groups = fill(tmp_path, sample_ids(6))
    lines = [json.loads(line) for line in (tmp_path / "0001.jsonl").read_text().splitlines()]
    assert (
        lines[0]["stages"] == list(LABELS)
        and lines[0]["shard"] == 1
        and lines[0]["rows"] == 2
        and lines[0]["header"] == header(sample_ids(6)).digest
    )
    assert [line["id"] for line in lines[1:-1]] == groups[1].tolist() and set(lines[1]) == {
        "id",
        "y",
        "file",
        "clean",
        "confidence",
        "attacked",
        "correct",
        "stages",
    }
    assert set(lines[-1]) == {"sha256"}


def test_a_result_that_contradicts_itself_is_refused():
    three, mixed, none = torch.arange(3), torch.tensor([True, False, True]), Answers.unknown([None] * 3)
    right = replace(none, clean=torch.tensor([0, NONE, 2]))
    with pytest.raises(ValueError, match="correct has shape"):
        ShardResult(three, three, torch.ones(2, dtype=torch.bool), none, {}, {}, {})
    with pytest.raises(ValueError, match="'pgd' is right where"):
        ShardResult(three, three, mixed, right, {"pgd": torch.ones(3, dtype=torch.bool)}, {}, {})
    with pytest.raises(ValueError, match="is not the label"):
        ShardResult(three, three, mixed, none, {}, {}, {})
    with pytest.raises(ValueError, match="wrong on the clean image"):
        ShardResult(three, three, mixed, right.broken(three[1:2], three[:1]), {}, {}, {})


# ---- damage ------------------------------------------------------------------------------------------------


def is_refused(folder, ids, group, number=0):
    """The file does not count, which is said once however often it is asked for; other shards do."""
    said = []
    store = ShardStore(folder, header(ids), said.append)
    assert (
        store.read(number, group) is None and store.read(number, group) is None and missing(store) == [number]
    )
    return len(said) == 1 and f"shard {number} does not count" in said[0]


def test_every_changed_byte_and_every_cut_is_noticed(tmp_path):
    ids = sample_ids(2)
    _, (group,) = fill(tmp_path, ids)
    path, draw = tmp_path / "0000.jsonl", random.Random(0)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for damaged in (
            whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :],
            whole[:place],
        ):
            path.write_bytes(damaged)
            assert is_refused(tmp_path, ids, group), (place, len(damaged))
    path.write_bytes(whole)
    assert same(ShardStore(tmp_path, header(ids), silent).read(0, group), result_of(group))


def mutant(draw, whole, others):
    """Something else than `whole`."""
    a, b = sorted(draw.randrange(len(whole) + 1) for _ in range(2))
    other, lines = draw.choice(others), whole.split(b"\n")
    found = [
        whole[:a] + draw.randbytes(draw.randint(1, 40)) + whole[b:],
        whole[:a] + whole[b:],
        whole[:a] + whole[a:b].swapcase() + whole[b:],
        whole + draw.choice([b"\n", b" ", b"{}\n", whole]),
        other,
        other[:a] + whole[a:],
        b"\n".join(draw.sample(lines, len(lines))),
    ]
    return draw.choice([data for data in found if data != whole])


def test_a_hundred_mutants_are_noticed_and_written_anew(tmp_path):
    ids, draw = sample_ids(11), random.Random(1)
    _, groups = fill(tmp_path / "foreign", ids, seed=1, the_plan=plan(seed=1))
    store, _ = fill(tmp_path / "ours", ids)
    path = tmp_path / "ours" / "0001.jsonl"
    whole = path.read_bytes()
    others = [
        (tmp_path / name).read_bytes()
        for name in ("ours/0000.jsonl", "ours/0002.jsonl", "foreign/0001.jsonl")
    ]
    for _ in range(100):
        path.write_bytes(mutant(draw, whole, others))
        assert is_refused(tmp_path / "ours", ids, groups[1], 1)
    store.write(1, result_of(groups[1]))
    assert path.read_bytes() == whole and missing(store) == []


@pytest.mark.parametrize("kind", ["folder", "link", "empty", "deep"])
def test_something_else_under_the_name_does_not_count(tmp_path, kind):
    ids = sample_ids(3)
    _, (group,) = fill(tmp_path, ids)
    path = tmp_path / "0000.jsonl"
    path.rename(tmp_path / "elsewhere")
    {
        "folder": path.mkdir,
        "link": lambda: path.symlink_to(tmp_path / "elsewhere"),
        "empty": path.touch,
        "deep": lambda: path.write_text("[" * 100_000),
    }[kind]()
    assert is_refused(tmp_path, ids, group)


def test_a_proven_file_about_other_samples_does_not_count(tmp_path):
    ids, said = sample_ids(4), []
    fill(tmp_path, ids)
    store = ShardStore(tmp_path, header(ids), said.append)
    assert store.read(0, ids.sort().values + 1) is None and "other samples" in said[0]


# ---- another evaluation ------------------------------------------------------------------------------------

OTHERS = {
    "model: aaaaaaaaaaaa there, dddddddddddd here": {"model": "d" * 64},
    "data: bbbbbbbbbbbb": {"data": "d" * 64},
    "code: cccccccccccc": {"code": "d" * 64},
    "size: 4 there, 5 here": {"size": 5},
    "seed: 0 there, 1 here": {"the_plan": plan(seed=1)},
    "target: null there, random here": {"the_plan": plan(target="random")},
    "ball.eps: 0.03": {"the_plan": plan(ball=Ball("linf", 4 / 255))},
    "ball.norm: linf there, l2 here": {"the_plan": plan(ball=Ball("l2", 8 / 255))},
    "search.dtype: torch.float32 there, torch.bfloat16 here": {
        "the_plan": plan(search=Search(torch.bfloat16))
    },
    "attacks.0.params.steps: 20 there, 21 here": {
        "the_plan": plan(attacks=[call(steps=21), call("square", restarts=2)])
    },
    "attacks.0.params.loss: null there, ce here": {
        "the_plan": plan(attacks=[call(loss="ce"), call("square", restarts=2)])
    },
    "attacks: [pgd-20, square] there, [pgd-20] here": {"the_plan": plan(attacks=[call()])},
    "attacks.0.label: pgd-20 there, square here": {
        "the_plan": plan(attacks=[call("square", restarts=2), call()])
    },
}


@pytest.mark.parametrize("named", OTHERS)
def test_another_evaluation_is_refused_by_name(tmp_path, named):
    ids = sample_ids(6)
    fill(tmp_path, ids)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="cannot resume another evaluation") as caught:
        ShardStore(tmp_path, header(ids, **OTHERS[named]), silent)
    assert named in caught.value.what and (caught.value.exit_code, caught.value.code) == (2, "E-RESUME")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    other = ShardStore(tmp_path / "other", header(ids, **OTHERS[named]), silent)
    assert other.header.digest != header(ids).digest


def test_other_samples_are_refused(tmp_path):
    fill(tmp_path, sample_ids(6))
    with pytest.raises(UsageError, match="ids: "):
        ShardStore(tmp_path, header(sample_ids(6, seed=1)), silent)
    with pytest.raises(UsageError, match="n: 6 there, 7 here"):
        ShardStore(tmp_path, header(sample_ids(7)), silent)


def test_batch_size_names_and_alarms_may_change(tmp_path):
    ids = sample_ids(6)
    _, groups = fill(tmp_path, ids, the_plan=plan(batch_size=256))
    more = {"about": {"model": "run:a"}, "alarms": [{"name": "softmax-output"}]}
    store = ShardStore(tmp_path, header(ids.flip(0), the_plan=plan(batch_size=None), **more), silent)
    assert missing(store) == [] and same(store.read(1, groups[1]), result_of(groups[1]))


def test_a_header_says_the_same_in_every_process():
    """A function prints with its address, which no other process shares: none may stand in a header."""
    registered = AttackCall.of(registry.attacks.get("pgd"), {"steps": 20})
    audit = AuditPlan(64, lambda passes: [registered], [registered])
    stored = header(sample_ids(6), the_plan=plan(attacks=[registered], audit=audit)).plan
    assert " at 0x" not in json.dumps(stored) and registered.cost is not None


def test_a_damaged_header_is_written_anew_and_the_shards_still_count(tmp_path):
    ids, path = sample_ids(6), tmp_path / "header.json"
    fill(tmp_path, ids, about={"classes": ["cat", "dog"]})
    whole = path.read_text()
    for damaged in (
        whole.replace("cat", "cut"),
        whole[:-20],
        "",
        "[]",
        "null",
        whole.replace('"n": 6', '"n": 7'),
        whole.replace("robustcli-shards-1", "x"),
    ):
        path.write_text(damaged)
        with pytest.raises(DataError, match="header of these shards is damaged"):
            merge([tmp_path])
        said = []
        assert (
            missing(ShardStore(tmp_path, header(ids, about={"classes": ["cat", "dog"]}), said.append)) == []
        )
        assert len(said) == 1 and path.read_text() == whole
    path.unlink()
    assert missing(ShardStore(tmp_path, header(ids), silent)) == []
    path.write_text("")
    said = []
    assert (
        missing(ShardStore(tmp_path, header(ids, the_plan=plan(seed=1)), said.append)) == [0, 1]
        and len(said) == 3
    )


# ---- killed ------------------------------------------------------------------------------------------------


def dying(name):
    def call(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(atomic.os, name, call)


@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace"])
def test_killed_while_writing_leaves_a_readable_store(tmp_path, name):
    ids = sample_ids(10)
    store, groups = fill(tmp_path, ids, [0, 1])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for number in (1, 2):  # over an old file, and a new one
        pid = os.fork()
        if pid == 0:
            try:
                dying(name)
                store.write(number, result_of(groups[number], seed=5))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert any(path.name.startswith(".tmp-") for path in tmp_path.iterdir()) == (name != "open")
    again = ShardStore(tmp_path, header(ids), silent)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert missing(again) == [2] and same(again.read(1, groups[1]), result_of(groups[1]))


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError):
        ShardStore(tmp_path / "file" / "shards", header(sample_ids(3)), silent)


# ---- merge -------------------------------------------------------------------------------------------------


def test_machines_share_an_evaluation_and_the_order_of_merging_does_not_matter(tmp_path):
    ids = sample_ids(30)
    folders = [tmp_path / name for name in "abc"]
    for i, folder in enumerate(folders):
        alarm = {"name": "zero-gradient", "evidence": f"{i}"}
        fill(folder, ids, part(8, i + 1, 3), about={"device": folder.name}, alarms=[alarm])
    fill(tmp_path / "all", ids, about={"device": "a"})
    expected, everything = merge([tmp_path / "all"])
    for order in (folders, folders[::-1], [*folders, folders[1]]):
        found, results = merge(order, silent)
        assert (
            found.digest == expected.digest
            and found.about == {"device": "a"}
            and [alarm["evidence"] for alarm in found.alarms] == ["2"]
        )
        assert len(results) == 8 and all(same(a, b) for a, b in zip(results, everything, strict=True))
    assert torch.equal(torch.cat([result.ids for result in everything]), ids.sort().values)


def test_a_merge_with_shards_missing_or_damaged_gives_what_is_there(tmp_path):
    ids, said = sample_ids(30), []
    fill(tmp_path, ids, [0, 3, 5])
    os.truncate(tmp_path / "0003.jsonl", 100)
    found, results = merge([tmp_path], said.append)
    assert found.shards == 8 and len(results) == 2 and len(said) == 1 and "shard 3" in said[0]


def test_costs_of_a_shard_held_twice_do_not_depend_on_the_order(tmp_path):
    ids = sample_ids(4)
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        store, (group,) = fill(tmp_path / name, ids)
        result = result_of(group)
        store.write(0, replace(result, seconds={**result.seconds, "pgd-20": seconds}))
    both = [merge([tmp_path / first, tmp_path / second])[1][0].seconds for first, second in ("ab", "ba")]
    assert both[0] == both[1]


def with_verdicts(result, **changed):
    """The result with other verdicts, and answers that agree with them."""
    y, correct = (changed.get(name, getattr(result, name)) for name in ("y", "correct"))
    return replace(result, answers=answers_of(y, correct, result.ids), **changed)


def flipped(result, name):
    """The verdict of the last row, changed in one column."""
    last = torch.arange(len(result.ids)) == len(result.ids) - 1
    if name == "y":
        return with_verdicts(result, y=torch.where(last, result.y + 1, result.y))
    wrong = {label: standing & ~last for label, standing in result.stages.items()}
    return (
        with_verdicts(result, correct=result.correct & ~last, stages=wrong)
        if name == "correct"
        else replace(result, stages={**result.stages, name: wrong[name]})
    )


@pytest.mark.parametrize("column", ["y", "correct", "pgd-20", "square"])
def test_two_machines_that_disagree_are_named_with_the_sample(tmp_path, column):
    ids = sample_ids(8)
    fill(tmp_path / "a", ids)
    store, groups = fill(tmp_path / "b", ids, [0])
    ones = torch.ones(4, dtype=torch.bool)
    always = with_verdicts(
        result_of(groups[1]),
        correct=ones,
        stages={label: ~ones if column == "correct" else ones for label in LABELS},
    )
    ShardStore(tmp_path / "a", header(ids), silent).write(1, always)
    store.write(1, flipped(always, column))
    with pytest.raises(DataError, match="two runs disagree about shard 1") as caught:
        merge([tmp_path / "a", tmp_path / "b"])
    assert caught.value.what.endswith(f"sample ids {int(groups[1][-1])}") and all(
        str(tmp_path / name) in caught.value.where for name in "ab"
    )
    assert caught.value.exit_code == 3


def test_only_parts_of_one_evaluation_are_merged(tmp_path):
    ids = sample_ids(8)
    fill(tmp_path / "a", ids)
    fill(tmp_path / "b", ids, the_plan=plan(seed=1, ball=Ball("l2", 0.5)))
    with pytest.raises(
        UsageError,
        match="not parts of one evaluation.*ball.eps: .*, ball.norm: linf there, l2 here, "
        "seed: 0 there, 1 here",
    ):
        merge([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UsageError, match="no shards of an evaluation"):
        merge([tmp_path / "a", tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="no run to merge"):
        merge([])


def test_shards_about_other_samples_than_the_header_are_noticed(tmp_path):
    ids = sample_ids(8)
    store, groups = fill(tmp_path, ids)
    store.write(1, result_of(groups[1] + 1000))
    with pytest.raises(DataError, match="not about the samples"):
        merge([tmp_path])


# ---- cutting -----------------------------------------------------------------------------------------------


@given(n=st.integers(0, 700), size=st.integers(1, 300), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_shards_cut_the_sorted_ids(n, size, seed):
    ids = sample_ids(n, seed)
    groups = shards_of(ids, size)
    assert torch.equal(torch.cat([ids[group] for group in groups]) if groups else ids, ids.sort().values)
    assert (
        all(len(group) == size for group in groups[:-1])
        and len(groups) == -(-n // size) == header(ids, size).shards
    )
    assert [len(group) for group in groups] == [header(ids, size).rows(k) for k in range(len(groups))]


def test_the_last_shard_is_shorter_and_ids_are_different():
    assert [len(group) for group in shards_of(torch.arange(600), 256)] == [256, 256, 88]
    with pytest.raises(ValueError, match="repeated"):
        shards_of(torch.tensor([4, 2, 4]), 2)


@given(shards=st.integers(0, 60), n=st.integers(1, 70))
def test_the_parts_of_all_machines_are_all_shards_once(shards, n):
    parts = [part(shards, i, n) for i in range(1, n + 1)]
    assert (
        sorted(k for one in parts for k in one) == list(range(shards))
        and max(map(len, parts)) - min(map(len, parts)) <= 1
    )
    assert all(k % n == i for i, one in enumerate(parts) for k in one)


@pytest.mark.parametrize(("i", "n"), [(0, 2), (3, 2), (1, 0), (-1, 4)])
def test_a_part_that_does_not_exist_is_refused(i, n):
    with pytest.raises(ValueError, match=f"{i}/{n}"):
        part(8, i, n)


def test_a_part_is_written_i_slash_n():
    assert parse_part("2/4") == (2, 4) and parse_part("1/1") == (1, 1)
    for text in (
        "",
        "2",
        "2/",
        "/4",
        "0/4",
        "5/4",
        "2/4/8",
        "-1/4",
        "1.0/4",
        "a/b",
        " 1/2",
        "1/2\n",
        "1/0",
        "١/٢",
    ):
        with pytest.raises(UsageError, match="--shard") as caught:
            parse_part(text)
        assert caught.value.exit_code == 2 and "\n" not in caught.value.line()
