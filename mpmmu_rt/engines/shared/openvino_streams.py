"""How cases get to OpenVINO: streams that run at the same time, and the requests that feed them."""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpmmu_rt.spec import MODALITIES, Array, Modality

_LANES_PER_STREAM = 2  # one runs, one waits: a stream never idles while Python collects the other's result


@dataclass(frozen=True)
class Shape:
    """What is compiled. cases: of a request. apart: as `halves`, each with its own threads, and not as one model."""

    streams: int
    cases: int = 1
    apart: bool = False


def halves(runtime: Any, model: Any) -> dict[str, Any] | None:
    """The joined model cut in two: `<modality>_pixels` [1, 1, S, S] to that modality's columns of `embedding`.

    The attention pool looks at each modality for itself and puts both side by side; None for a model of any other kind.
    """
    model = model.clone()
    last = model.outputs[0].get_node().input_value(0).get_node()
    inputs = {name: one.get_node() for one in model.inputs for name in one.names}
    if last.get_type_name() != "Concat" or last.get_input_size() != len(MODALITIES) or last.get_axis() not in (1, -1):
        return None
    try:
        return {
            modality: runtime.Model(
                [last.input_value(at)], [inputs[f"{modality}_pixels"]], f"{modality} of {model.name}"
            )
            for at, modality in enumerate(MODALITIES)
        }
    except RuntimeError:  # it reads the other modality too
        return None


class _Lane:
    """A request of each model, that run at the same time, and their buffers.

    pixels: uint8 [cases, 1, S, S] per modality. What a request says, float32 [cases, columns], are the next columns of
    the embedding.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        self._requests = [model.create_infer_request() for model in models]
        self.pixels: dict[Modality, Array] = {}
        self._columns: list[tuple[slice, Array]] = []
        begin = 0
        for model, request in zip(models, self._requests, strict=True):
            names = {name for one in model.inputs for name in one.names}
            for modality in MODALITIES:
                if f"{modality}_pixels" in names:
                    self.pixels[modality] = request.get_tensor(f"{modality}_pixels").data
            said = request.get_output_tensor(0).data
            self._columns.append((slice(begin, begin + said.shape[1]), said))
            begin += said.shape[1]

    def start(self) -> None:
        """Raises RuntimeError; it has to be waited for then as well."""
        for request in self._requests:
            request.start_async()

    def wait(self) -> None:
        """Raises the first RuntimeError; nothing of it runs afterwards. What was not started is not waited for."""
        for at, request in enumerate(self._requests):
            try:
                request.wait()
            except BaseException:
                _wait(self._requests[at + 1 :])
                raise

    def copy_to(self, embedding: Array) -> None:
        for columns, said in self._columns:
            embedding[:, columns] = said


def _wait(requests: Sequence[Any]) -> None:
    """A failure is on its way up already."""
    for request in requests:
        with contextlib.suppress(Exception):
            request.wait()


class Streams:
    """Compiled for a number of streams and of cases in a request, and the lanes that feed them."""

    def __init__(self, models: Sequence[Any], shape: Shape, blobs: Sequence[Array] = ()) -> None:
        """models: the joined one, or the compiled `halves`. blobs: the memory that they were read from, and go on
        reading from."""
        self._blobs = blobs
        self.models = tuple(models)
        self.cases = shape.cases
        self._idle: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for _ in range(_LANES_PER_STREAM * shape.streams):
            self._idle.put(_Lane(models))

    def run(self, pixels: Mapping[Modality, Array], embedding: Array) -> None:
        """Fill `embedding` float32 [N, D]; N is a multiple of the cases of a request.

        Any number of threads may call it; they share the lanes.
        """
        flying: deque[tuple[int, _Lane]] = deque()
        try:
            for row in range(0, len(embedding), self.cases):
                lane = self._take(flying, embedding)
                flying.append((row, lane))  # before it starts: whatever fails or interrupts from here on
                for modality, buffer in lane.pixels.items():
                    np.copyto(buffer, pixels[modality][row : row + self.cases])
                lane.start()
            while flying:
                self._land(flying, embedding)
        finally:
            self._give_back(flying)

    def _give_back(self, flying: deque[tuple[int, _Lane]]) -> None:
        """After a failure: nobody may get a lane that still runs, and none may be lost to a second Ctrl-C."""
        try:
            while flying:
                _, lane = flying[0]
                with contextlib.suppress(Exception):
                    lane.wait()
                del flying[0]
                self._idle.put(lane)
        except BaseException:
            self._give_back(flying)
            raise

    def _take(self, flying: deque[tuple[int, _Lane]], embedding: Array) -> _Lane:
        """An idle lane; where there is none, the oldest of our own, or else one that another thread returns."""
        while True:
            try:
                return self._idle.get_nowait()
            except queue.Empty:
                if not flying:
                    return self._idle.get()
                self._land(flying, embedding)

    def _land(self, flying: deque[tuple[int, _Lane]], embedding: Array) -> None:
        row, lane = flying[0]
        lane.wait()
        lane.copy_to(embedding[row : row + self.cases])
        del flying[0]  # no call, behind which Python would let an interrupt in
        self._idle.put(lane)
