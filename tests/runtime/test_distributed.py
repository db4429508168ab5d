"""Two processes over gloo on this machine: what they tell each other, and what one says without the other."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.errors import PeerError, UsageError
from robustcli.runtime import distributed
from robustcli.runtime.distributed import Ranks, join, local_device, solo

CPU = torch.device("cpu")
Body = Callable[[Ranks], Any]


class Pair:
    """Two forked ranks; each leaves what `body` returned, or the line of its PeerError, in a file."""

    def __init__(self, forked: Any, folder: Path, body: Body, seconds: int = 50) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        common = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ROBUSTCLI_PG_TIMEOUT": str(seconds),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self.forked, self.folder = forked, folder

        def run(rank: int) -> int:
            os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank))
            with join(CPU) as ranks:
                try:
                    answer, code = body(ranks), 0
                except PeerError as error:
                    answer, code = error.line(), error.exit_code
            (folder / f"{rank}.json").write_text(json.dumps(answer))
            return code

        self.pids = [forked.start(lambda rank=rank: run(rank)) for rank in (0, 1)]

    def wait(self, rank: int) -> Any:
        """Exit code and answer of one rank."""
        code = self.forked.wait(self.pids[rank], 60)
        path = self.folder / f"{rank}.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    def answers(self) -> list[Any]:
        ended = [self.wait(0), self.wait(1)]
        assert [code for code, _ in ended] == [0, 0]
        return [answer for _, answer in ended]


def inputs(rank: int) -> list[torch.Tensor]:
    """Dtypes mixed on purpose, and not in contiguous order."""
    single = (torch.arange(6.0).reshape(2, 3) * 0.1 + rank).t()
    return [
        single,
        torch.full((2,), 1e-9 + rank, dtype=torch.float64),
        torch.tensor(3.0 * rank),
        torch.ones(0),
        torch.ones(1, 2, dtype=torch.bfloat16) * rank,
    ]


def numbers(tensors: list[torch.Tensor]) -> list[Any]:
    return [tensor.tolist() for tensor in tensors]


# ---- what ranks exchange -----------------------------------------------------------------------------------


def test_a_process_alone_asks_nobody() -> None:
    ranks, tensors = solo(), inputs(1)
    assert (ranks.rank, ranks.world, ranks.main) == (0, 1, True)
    assert ranks.agree(True, False) == (True, False) and ranks.agree() == ()
    ranks.mean(tensors)
    assert numbers(tensors) == numbers(inputs(1))
    assert ranks.gather({"a": (1, 2)}) == [{"a": [1, 2]}] and ranks.broadcast([1, None, "x"]) == [
        1,
        None,
        "x",
    ]
    ranks.barrier()
    ranks.close()
    assert not torch.distributed.is_initialized()


def test_agree_is_true_where_any_rank_is(forked: Any, tmp_path: Path) -> None:
    both = Pair(
        forked,
        tmp_path,
        lambda ranks: [ranks.agree(ranks.rank == 0, ranks.rank == 1, False, True), ranks.agree()],
    ).answers()
    assert both == [[[True, True, False, True], []]] * 2


def test_mean_is_the_mean_by_hand_and_the_same_bits_everywhere(forked: Any, tmp_path: Path) -> None:
    def body(ranks: Ranks) -> Any:
        parameter = torch.nn.Parameter(torch.tensor([float(ranks.rank), 4.0]))
        tensors = [*inputs(ranks.rank), parameter]
        places = [tensor.data_ptr() for tensor in tensors]
        ranks.mean(tensors)
        ranks.mean([])
        assert places == [tensor.data_ptr() for tensor in tensors] and parameter.requires_grad
        return numbers(tensors)

    first, second = Pair(forked, tmp_path, body).answers()
    by_hand = [(a + b) / 2 for a, b in zip(inputs(0), inputs(1), strict=True)] + [torch.tensor([0.5, 4.0])]
    assert first == second == numbers(by_hand)


def test_gather_and_broadcast_carry_values_of_any_length(forked: Any, tmp_path: Path) -> None:
    def body(ranks: Ranks) -> Any:
        mine = {"rank": ranks.rank, "text": "ä" * (3000 * ranks.rank), "none": None, "x": 0.1}
        gathered = ranks.gather(mine)
        ranks.barrier()
        return [gathered, ranks.broadcast(["from", ranks.rank]), ranks.rank, ranks.main]

    first, second = Pair(forked, tmp_path, body).answers()
    expected = [{"rank": rank, "text": "ä" * (3000 * rank), "none": None, "x": 0.1} for rank in (0, 1)]
    assert first == [expected, ["from", 0], 0, True]
    assert second == [expected, ["from", 0], 1, False]


def test_a_mean_of_whole_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        solo().mean([torch.ones(2), torch.ones(2, dtype=torch.int64)])


# ---- a peer is gone ----------------------------------------------------------------------------------------


def die(how: str) -> None:
    if how == "raise":
        raise ZeroDivisionError
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("call", ["agree", "mean", "gather", "broadcast", "barrier"])
def test_a_killed_peer_is_one_line_with_exit_8(forked: Any, tmp_path: Path, call: str) -> None:
    calls: dict[str, Body] = {
        "agree": lambda ranks: ranks.agree(False),
        "mean": lambda ranks: ranks.mean([torch.ones(3)]),
        "gather": lambda ranks: ranks.gather(1),
        "broadcast": lambda ranks: ranks.broadcast(1),
        "barrier": lambda ranks: ranks.barrier(),
    }

    def body(ranks: Ranks) -> Any:
        if ranks.rank == (0 if call == "broadcast" else 1):
            die("kill")
        return calls[call](ranks)

    dead = 0 if call == "broadcast" else 1
    pair = Pair(forked, tmp_path, body)
    assert pair.wait(dead) == (-signal.SIGKILL, None)
    code, line = pair.wait(1 - dead)
    assert (
        code == 8
        and line.startswith(f"error[E-PEER]: rank {1 - dead} of 2 lost a peer in {call}: ")
        and "\n" not in line
    )
    assert "onnection" in line and ".cc" not in line and "Check the logs" not in line, (
        "torch's reason, without its place and its advice"
    )


def test_a_peer_that_raised_leaves_the_group(forked: Any, tmp_path: Path) -> None:
    def body(ranks: Ranks) -> Any:
        if ranks.rank == 1:
            die("raise")
        return ranks.agree(False)

    pair = Pair(forked, tmp_path, body)
    assert pair.wait(1) == (99, None)
    code, line = pair.wait(0)
    assert code == 8 and "rank 0 of 2" in line


def test_a_silent_peer_is_waited_for_so_long_and_no_longer(forked: Any, tmp_path: Path) -> None:
    def body(ranks: Ranks) -> Any:
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return ranks.agree(False)

    pair = Pair(forked, tmp_path, body, seconds=3)
    code, line = pair.wait(0)
    os.kill(pair.pids[1], signal.SIGKILL)
    assert code == 8 and "imed out" in line


def test_after_a_loss_every_call_is_refused_without_asking(forked: Any, tmp_path: Path) -> None:
    def body(ranks: Ranks) -> Any:
        if ranks.rank == 1:
            die("kill")
        with pytest.raises(PeerError):
            ranks.agree(False)
        with pytest.raises(PeerError, match="before"):
            ranks.barrier()
        return "refused"

    assert Pair(forked, tmp_path, body).wait(0) == (0, "refused")


def test_a_peer_that_never_comes(monkeypatch: pytest.MonkeyPatch, forked: Any) -> None:
    def body() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server:
            os.environ.update(
                RANK="0",
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(server.getsockname()[1]),
                ROBUSTCLI_PG_TIMEOUT="1",
            )
        try:
            join(CPU)
        except PeerError as error:
            return error.exit_code if "rank 0 of 2 lost a peer in joining: " in error.line() else 1
        return 2

    assert forked.run(body, 10) == 8


# ---- the environment ---------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ROBUSTCLI_PG_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()] and None


@pytest.mark.parametrize("values", [{}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_without_others_a_process_is_alone(environment: Callable[..., None], values: dict[str, str]) -> None:
    environment(**values)
    assert join(CPU).world == 1


WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"RANK": ""}, "RANK is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"ROBUSTCLI_PG_TIMEOUT": "0"}, "ROBUSTCLI_PG_TIMEOUT='0'"),
        ({"ROBUSTCLI_PG_TIMEOUT": "nan"}, "ROBUSTCLI_PG_TIMEOUT='nan'"),
    ],
)
def test_an_impossible_environment_is_named(
    environment: Callable[..., None], change: dict[str, str], message: str
) -> None:
    environment(**{**WHOLE, **change})
    with pytest.raises(UsageError) as caught:
        join(CPU)
    assert message in caught.value.line()


def test_a_device_without_collectives_is_refused(environment: Callable[..., None]) -> None:
    environment(**WHOLE)
    with pytest.raises(UsageError, match="mps"):
        join(torch.device("mps"))


def test_each_rank_has_its_own_gpu(environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [local_device(name) for name in ("auto", "cuda", "cpu")] == ["auto", "cuda", "cpu"]
    environment(**WHOLE, LOCAL_RANK="3")
    monkeypatch.setattr(distributed, "cuda_count", lambda: 4)
    assert [local_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:3",
        "cuda:3",
        "cuda:1",
        "cpu",
    ]
    monkeypatch.setattr(distributed, "cuda_count", lambda: 0)
    assert [local_device(name) for name in ("auto", "cuda")] == ["cpu", "cuda"], (
        "a GPU that was asked for and is missing is not the CPU"
    )


def test_what_libraries_say_while_ranks_meet_is_no_result(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def talk(*args: Any, **kwargs: Any) -> None:
        os.write(1, b"[Gloo] Rank 0 is connected to 1 peer ranks\n")
        raise RuntimeError("nobody came")

    monkeypatch.setattr("torch.distributed.init_process_group", talk)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **where}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PeerError, match="nobody came"):
        join(torch.device("cpu"))
    os.write(1, b"a result\n")
    out, err = capfd.readouterr()
    assert out == "a result\n" and err.startswith("[Gloo]")
