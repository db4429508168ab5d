"""Work on tensors that is recorded once and replayed on buffers of its own: CUDA graphs.

A network on few images leaves a GPU idle: Python starts one small kernel after another. A recording starts
all of them in one call. Its buffers are ours: inputs are copied in, and answers are copied out before anyone
else can overwrite them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from robustcli.core.padding import filled
from robustcli.core.recordable import check_recordable
from robustcli.errors import out_of_memory

#: Tensors [R, ...] in, tensors [R, ...] out. Row r of an answer depends on row r of the inputs alone. It may
#: read tensors that stay where they are, such as weights, and depends on nothing else.
Work = Callable[..., tuple[Tensor, ...]]

_AFTER = 3  # uses before a recording: a recording costs about six of them
_MOST = 48  # recordings of one network; all share one memory pool
_REMEMBERED = 512  # kinds of work whose uses are counted
_OFF = 0.01  # share of the mean size by which a replay may differ from the work: kernels add in any order


class Recorder(Protocol):
    """What can record work."""

    def record(self, work: Work, buffers: Sequence[Tensor]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """(replay, outputs): `replay` does work(*buffers) again and leaves the answers in `outputs`.

        Both are on buffers of fixed addresses. Replays of one recorder never overlap.
        """


class CudaRecorder:
    """Records with `torch.cuda.graph`: a stream of its own, one memory pool for all recordings.

    The pool is shared, so a replay may overwrite the outputs of another recording: they are copied at once.

    Attributes:
        broken: whether a recording of this process has failed half-way. The allocator of CUDA memory is then
            in a state that nobody describes, so nothing more is recorded.
    """

    broken: ClassVar[bool] = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work, buffers: Sequence[Tensor]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """See `Recorder`. Warms up first: libraries allocate, and choose kernels, in the first two passes."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):  # of which torch makes the device current, too
            for _ in range(2):
                work(*buffers)
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        type(self).broken = True  # until it is done
        # Other threads may allocate meanwhile: the loader pins memory.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = work(*buffers)
        type(self).broken = False
        return graph.replay, outputs


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on a device; None where nothing does."""
    if device.type != "cuda" or CudaRecorder.broken:
        return None
    return CudaRecorder(device)


@dataclass
class _Recording:
    """Work on fixed buffers. proven: whether a replay on other inputs has answered as the work itself."""

    replay: Callable[[], None]
    buffers: Sequence[Tensor]
    outputs: tuple[Tensor, ...]
    proven: bool = False

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The answers to inputs [R, ...], in tensors of the caller's own."""
        rows = len(inputs[0])
        for buffer, source in zip(self.buffers, inputs, strict=True):
            buffer[:rows].copy_(source)
            if rows < len(buffer):
                buffer[rows:].copy_(source[-1:])
        self.replay()
        return tuple(output[:rows].clone() for output in self.outputs)


class Graphs:
    """Recordings of work around one network. What cannot be recorded is done as it is, and not tried again.

    Work is recorded at its third use with the same shapes. At the next use it is done twice, replayed and as
    it is; unless both agree the recording is dropped. No answer comes from a recording before that.

    Args:
        checked: whether each operation is looked at before a recording, see `check_recordable`. Not for
            compiled code, which is recorded after the code that it was made of.

    Attributes:
        note: why something could not be recorded; "" otherwise.
        recorded: how many recordings there are.
    """

    def __init__(self, *, checked: bool = True) -> None:
        self._checked, self.note = checked, ""
        self._turn = threading.RLock()  # buffers are filled, replayed and read by one thread at a time
        self._recorder: Recorder | None = None
        self._full = False
        self._recordings: dict[Hashable, _Recording] = {}
        self._refused: set[Hashable] = set()
        self._uses: dict[Hashable, tuple[int, Hashable]] = {}

    @property
    def recorded(self) -> int:
        """See above."""
        return len(self._recordings)

    def __call__(
        self,
        key: Hashable,
        work: Work,
        inputs: Sequence[Tensor],
        size: int,
        plain: Callable[[], tuple[Tensor, ...]],
        visit: Hashable = None,
    ) -> tuple[Tensor, ...]:
        """What `plain` answers, from a recording of `work` where there is one.

        Args:
            key: two works of one key do the same.
            work: what to record.
            inputs: [R, ...], R >= 1, without a graph. Recordings are of inputs filled up to `size` rows.
            size: >= R.
            plain: () -> work(*inputs) without a recording, or what equals it.
            visit: who asks. With it, work is recorded only if somebody else has asked for it before: steps
                of a radius that grows from batch to batch are never asked for again.
        """
        full = (key, size, *(_look(tensor) for tensor in inputs))
        with self._turn:
            recording = self._recordings.get(full)
            if recording is not None and recording.proven:
                return recording(inputs)
            wanted = self._done(plain)
            if recording is not None:
                self._prove(full, recording, inputs, wanted)
            elif self._due(full, visit):
                self._record(full, work, [filled(tensor, size) for tensor in inputs])
            return wanted

    def forget(self) -> None:
        """Drop all recordings, with their memory; nothing is recorded from now on."""
        with self._turn:
            self._recordings.clear()
            self._recorder, self._full = None, True
            self.note = "CUDA graphs are given up: memory ran out"

    def _done(self, plain: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """plain(); where memory runs out, that of the recordings is given back before anyone tries again."""
        try:
            return plain()
        except (RuntimeError, MemoryError) as error:
            if self._recordings and out_of_memory(error):
                self.forget()
            raise

    def _due(self, full: Hashable, visit: Hashable) -> bool:
        """Whether to record now; counts this use."""
        if self._full or full in self._refused or self.recorded >= _MOST:
            return False
        if len(self._uses) > _REMEMBERED:
            self._uses.clear()
        count, first = self._uses.get(full, (0, visit))
        self._uses[full] = count + 1, first
        return count + 1 >= _AFTER and (visit is None or visit != first)

    def _record(self, full: Hashable, work: Work, inputs: Sequence[Tensor]) -> None:
        """Record the work on buffers that look like these inputs, or remember that this cannot be."""
        try:
            recorder = self._recorder or recorder_for(inputs[0].device)
            if recorder is None:
                raise RuntimeError("nothing records here")
            self._recorder = recorder
            buffers = [torch.empty_like(tensor).copy_(tensor) for tensor in inputs]
            if self._checked:
                check_recordable(work, buffers)
            self._recordings[full] = _Recording(*_ordered(recorder.record(work, buffers), buffers))
        except Exception as failure:  # whatever goes wrong here, the work itself is done as it is
            if out_of_memory(failure):
                self.forget()
                return
            self._give_up(full, str(failure).splitlines()[0] if str(failure) else type(failure).__name__)

    def _prove(
        self, full: Hashable, recording: _Recording, inputs: Sequence[Tensor], wanted: tuple[Tensor, ...]
    ) -> None:
        """Keep a recording if it answers what the work answers."""
        for output in recording.outputs:  # a part that no replay writes must not look right
            output.fill_(float("nan") if output.is_floating_point() else -1)
        got = recording(inputs)
        recording.proven = all(_alike(one, other) for one, other in zip(got, wanted, strict=True))
        if not recording.proven:
            del self._recordings[full]
            self._give_up(full, "a replay answers otherwise than the network")

    def _give_up(self, full: Hashable, why: str) -> None:
        self._refused.add(full)
        self.note = f"no CUDA graph: {why}"


def _ordered(
    made: tuple[Callable[[], None], tuple[Tensor, ...]], buffers: Sequence[Tensor]
) -> tuple[Callable[[], None], Sequence[Tensor], tuple[Tensor, ...]]:
    """(replay, buffers, outputs)."""
    replay, outputs = made
    return replay, buffers, outputs


def _look(tensor: Tensor) -> Hashable:
    """What a recording of a tensor depends on, but for the number of its rows."""
    return tensor.dtype, tensor.device, tuple(tensor.shape[1:]), tensor.stride()[1:]


def _alike(got: Tensor, wanted: Tensor) -> bool:
    """Whether two answers are the same up to the order in which kernels add."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    if not got.is_floating_point():
        return torch.equal(got, wanted)
    if not torch.equal(torch.isfinite(got), torch.isfinite(wanted)):
        return False
    got, wanted = got.nan_to_num(0.0, 0.0, 0.0).double(), wanted.nan_to_num(0.0, 0.0, 0.0).double()
    return bool((got - wanted).abs().mean() <= _OFF * wanted.abs().mean())
