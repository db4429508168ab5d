"""Hostile config files: the shipped ones damaged in every way, and a corpus of known tricks.

Same seed, same files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from robustcli.config.shipped import shipped_configs

CANARY = "canary-was-created"
_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 10)
)
CORPUS: dict[str, bytes] = {
    "alias bomb": _BOMB.encode(),
    "cyclic list": b"attacks: &a [*a]\n",
    "cyclic map": b"ball: &a {eps: *a}\n",
    "deep flow": b"a: " + b"[" * 2000 + b"]" * 2000,
    "deep block": b"".join(b" " * k + b"a:\n" for k in range(500)),
    "deep dashes": b"- " * 5000,
    "deep keys": b"? " * 5000,
    "no closing": b"{" * 100_000,
    "many values": b"attacks: [" + b"pgd, " * 20_000 + b"pgd]\n",
    "many keys": b"".join(b"k%d: 1\n" % k for k in range(4_000)),
    "run code": f"name: !!python/object/apply:os.system ['touch {CANARY}']\n".encode(),
    "make object": b"data: !!python/object/new:pathlib.Path [x]\n",
    "open file": f"out: !!python/object/apply:builtins.open ['{CANARY}', 'w']\n".encode(),
    "binary tag": b"name: !!binary aGVsbG8=\n",
    "dates": b"seed: 2020-01-01\nname: 2020-01-01T00:00:00Z\n",
    "set and omap": b"data: !!set {a, b}\nball: !!omap [a: 1]\n",
    "merge": b"a: &a {eps: 1}\nball:\n  <<: *a\n",
    "two documents": b"seed: 1\n---\nseed: 2\n",
    "document marks": b"---\nseed: 1\n...\n---\n...\n",
    "directive": b"%YAML 1.1\n%TAG !e! tag:example.com,2000:\n---\nname: !e!x y\n",
    "long directive": b"%YAML " + b"9" * 6000 + b".1\n---\nseed: 1\n",
    "utf-16": "seed: 1\n".encode("utf-16"),
    "bom": b"\xef\xbb\xbfseed: 1\n",
    "nul": b"name: a\x00b\n",
    "bell": b"name: a\x07b\n",
    "bad utf-8": b"name: \xff\xfe\xfa\n",
    "surrogate": b'name: "\\ud800"\nout: "\\U00110000"\n',
    "escapes": b'out: "\\0\\e[31m\\r\\n"\n',
    "long int": b"seed: " + b"9" * 5000 + b"\n",
    "long float": b"ball: {eps: 1e" + b"9" * 5000 + b"}\n",
    "long key": b"k" * 100_000 + b": 1\n",
    "long value": b"name: " + b"v" * 100_000 + b"\n",
    "not a mapping": b"- 1\n- 2\n",
    "only a word": b"hello\n",
    "only a comment": b"# robustcli train x\n",
    "nothing": b"",
    "tabs": b"data:\n\tname: digits\n",
    "odd keys": b"1: a\nnull: b\ntrue: c\n? [x]\n: d\n? {y: z}\n: e\n",
    "duplicate": b"seed: 1\nseed: 2\ndata: {name: digits, name: fake}\n",
    "extends itself": b"extends: c.yaml\n",
    "extends a device": b"extends: ../../../../../../dev/zero.yaml\n",
    "extends a list": b"extends: [a.yaml]\n",
    "index keys": b"attacks: {0: pgd}\n",
    "quoted index keys": b"attacks: {'0': {name: fgsm}, '99': pgd}\n",
    "empty sections": b"data:\nball:\ntrain:\nmodel:\nattacks:\neval:\n",
    "wrong shapes": b"data: [1]\nball: 3\ntrain: {optimizer: [sgd], schedule: 3}\nmodel: {}\n"
    b"attacks: [[pgd], 3, null]\neval: {fail_under: [1]}\n",
    "spec methods": b"adversary: {name: pgd, params: 1, model_extra: 2, __class__: 3, of: 4}\n",
    "long text": b"name: " + b"x " * 500_000 + b"\n",
    "too large": b"# " + b"x" * (1 << 20) + b"\n",
}  # fmt: skip
_WORDS = [
    b"no", b"on", b"010", b"0x1f", b"1:30", b"1_000", b".nan", b"-.inf", b"8/0", b"1e999", b"1e-999", b"-1",
    b"9" * 400, b"~", b"''", b"[]", b"{}", b"*x", b"&x y", b"!!int 3", b"true", b"8", b"0", b"255",
    b"../../etc", b"'a\\0b'", b'"\\x00"', b"2020-01-01", b"<<", b"=", b"|", b"> x", b"@x", b"`x", b"%x",
    b"\xe2\x80\xae", b"\xf0\x9f\x92\xa9",
]  # fmt: skip
_BYTES = [
    b"\x00", b"\xff", b"\x85", b"\xe2\x80\xa8", b"\t", b"\r", b"\n", b"\n---\n", b"\n...\n", b": ", b"{",
    b"}", b"[", b"]", b"&a ", b"*a ", b"!!python/name:os.system ", b"#", b"'", b'"', b"? ", b"- ",
]  # fmt: skip

_Mutator = Callable[[random.Random, bytes], bytes]


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return (
        data[:at]
        + (rng.choice(_BYTES) if rng.random() < 0.7 else rng.randbytes(rng.randint(1, 20)))
        + data[at:]
    )


def _swap_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


def _repeat_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"".join(lines)


def _drop(rng: random.Random, data: bytes) -> bytes:
    a = rng.randrange(len(data))
    return data[:a] + data[a + rng.randint(1, 12) :]


def _replace_value(rng: random.Random, data: bytes) -> bytes:
    places = [k for k in range(len(data) - 1) if data[k : k + 2] == b": "]
    if not places:
        return data
    at = rng.choice(places) + 2
    end = min((data.find(c, at) for c in (b",", b"}", b"\n") if data.find(c, at) >= 0), default=len(data))
    return data[:at] + rng.choice(_WORDS) + data[end:]


def _replace_key(rng: random.Random, data: bytes) -> bytes:
    places = [k for k in range(len(data) - 1) if data[k : k + 2] == b": "]
    if not places:
        return data
    at = rng.choice(places)
    return data[: at - 1] + rng.choice([b"", b"x", b"yy", *_WORDS]) + data[at:]


def _shift(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = lines[at].lstrip(b" ") if rng.random() < 0.5 else b" " * rng.randint(1, 5) + lines[at]
    return b"".join(lines)


MUTATORS: list[_Mutator] = [
    _flip,
    _truncate,
    _insert,
    _swap_lines,
    _repeat_line,
    _drop,
    _replace_value,
    _replace_value,
    _replace_key,
    _shift,
]


def fuzzed_configs(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` files: first the corpus (as far as it fits in half of them), then mutated shipped configs."""
    rng = random.Random(seed)
    corpus = list(CORPUS.items())
    rng.shuffle(corpus)
    yield from corpus[: count // 2]
    shipped = [(name, path.read_bytes()) for name, path in shipped_configs().items()]
    for _ in range(count - min(len(corpus), count // 2)):
        name, data = rng.choice(shipped)
        steps = [rng.choice(MUTATORS) for _ in range(rng.choice([1, 1, 2, 3]))]
        for mutate in steps:
            data = mutate(rng, data or b" ")
        yield f"{name} {[step.__name__ for step in steps]}", data
