"""What Triton's Python backend runs. `model.py` of a repository has a class that derives from one of these.

Numbers go to and from Triton by DLPack alone: Triton's Python backend up to 2.51 at least was built for NumPy 1, and
under NumPy 2 what it makes of NumPy's arrays has no bytes, and what it makes of BYTES ends its process. So texts and
files are uint8 tensors, too.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt._optional import quote_no_files
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import engine
from mpmmu_rt.errors import DigestMismatch, ImageError, MpmmuError, PixelsError
from mpmmu_rt.machine import usable_threads
from mpmmu_rt.pairs import require_pairs, said_against
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verify import require_replayed

from .answers import Answer, Pixels, answers, as_ours, read_pair

# Of a file that is sent: more than any mammogram, and what a request may cost a server in memory.
MAX_SENT_BYTES = 128 * 2**20
_TAKEN = ctypes.c_char_p(b"used_dltensor")  # of DLPack; lives as long as any capsule
Warnings = tuple[tuple[str, ...], ...]  # of one request: what is to be said against each of its cases
Read = tuple[Pixels | MpmmuError, Warnings]
OUTPUTS = ("probability", "base_probability", "decision", "bundle_digest", "warnings")


class PixelsModel:
    """`mpmmu`: pixels uint8 [n, 1, S, S] of both modalities to what `OUTPUTS` names. Ready once the bundle's digests
    held and its golden vectors were replayed on the target."""

    triton: Any  # the module triton_python_backend_utils, which only Triton's process has

    def initialize(self, args: Mapping[str, str]) -> None:
        with _refused(self.triton):
            config = json.loads(args["model_config"])
            bundle = Bundle.open(_bundle(args, config))
            _require_the_same(bundle, _parameter(config, "bundle_digest"))
            target = Target.parse(_parameter(config, "target"))
            engine(target)
            bundle.require_proven(target)
            self.predictor = Predictor(bundle, target, threads=max(1, usable_threads() // _instances(config)))
            require_replayed(self.predictor)
            self._digest = np.frombuffer(bytes.fromhex(bundle.digest), np.uint8)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        read = self.read(requests)
        said = answers(self.predictor, [pixels for pixels, _ in read])
        return [self._response(one, warnings) for one, (_, warnings) in zip(said, read, strict=True)]

    def read(self, requests: Sequence[Any]) -> list[Read]:
        return [self._looked_at(request) for request in requests]

    def _looked_at(self, request: Any) -> Read:
        try:
            pixels = self._pixels(request)
            return pixels, warnings_of(self.predictor, pixels)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it is nobody else's
            return as_ours(error), ()

    def _pixels(self, request: Any) -> Pixels:
        found: dict[Modality, Array] = {}
        for modality in MODALITIES:
            tensor = self.triton.get_input_tensor_by_name(request, f"{modality}_pixels")
            if tensor is None:
                raise PixelsError(f"the request has no `{modality}_pixels`, expected both", hint="send both images")
            found[modality] = np.from_dlpack(tensor)
        return found

    def _response(self, said: Answer | MpmmuError, warnings: Warnings) -> Any:
        if isinstance(said, MpmmuError):
            return failure(self.triton, said)
        arrays = {"probability": said.probability, "decision": said.decision}
        if said.base_probability is not None:
            arrays["base_probability"] = said.base_probability
        warning = self.predictor.bundle.warning
        of_all = [warning] if warning else []
        arrays["bundle_digest"] = np.tile(self._digest, (len(said.probability), 1))
        arrays["warnings"] = rows_of(["; ".join([*of_all, *one]) for one in warnings])
        return self.triton.InferenceResponse([_tensor(self.triton, *one) for one in arrays.items()])

    def finalize(self) -> None:
        if hasattr(self, "predictor"):
            self.predictor.close()


class FilesModel(PixelsModel):
    """`mpmmu_files`: one case's two files, as they are, to the same answer.

    It has a Predictor of its own and does not ask `mpmmu`: a server that is told to stop refuses what one model asks of
    another, for a request that it had accepted (triton-inference-server/server#6287).
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        super().initialize(args)
        quote_no_files()  # in the server's log; the process is this model's alone
        self._pool = ThreadPoolExecutor(self.predictor.threads, thread_name_prefix="decode")

    def read(self, requests: Sequence[Any]) -> list[Read]:
        return [_outcome(one) for one in [self._pool.submit(self._read, request) for request in requests]]

    def _read(self, request: Any) -> Read:
        files = {modality: self._file(request, modality) for modality in MODALITIES}
        bundle = self.predictor.bundle
        pixels, said = read_pair(files, bundle.preprocessing, frame=self._frame(request), check=bundle.modality_check)
        return pixels, (said,)

    def _file(self, request: Any, modality: Modality) -> memoryview:
        tensor = self.triton.get_input_tensor_by_name(request, modality)
        data = np.empty((1, 0), np.uint8) if tensor is None else np.from_dlpack(tensor)
        if len(data) != 1:
            raise ImageError(
                f"the request holds {len(data)} cases, expected one, its files uint8 [1, bytes]",
                hint="send a request for each case; they share batches all the same",
            )
        if data.size > MAX_SENT_BYTES:
            raise ImageError(
                f"`{modality}` has {data.size} bytes, expected at most {MAX_SENT_BYTES}",
                hint="send a single image; `mpmmu-rt run` reads larger files",
            )
        return np.ascontiguousarray(data[0]).data

    def _frame(self, request: Any) -> int | None:
        tensor = self.triton.get_input_tensor_by_name(request, "frame")
        if tensor is None:
            return None
        frame = int(np.from_dlpack(tensor).reshape(-1)[0])
        if frame < 0:
            raise ImageError(f"`frame` is {frame}, expected a number from 0", hint="leave it out for single images")
        return frame

    def finalize(self) -> None:
        super().finalize()
        if hasattr(self, "_pool"):
            self._pool.shutdown()


def warnings_of(predictor: Predictor, pixels: Pixels) -> Warnings:
    """What is to be said against each case of a request, as `read_pair` says it of files. Raises `PixelsError` for
    pixels that the model was not made for, and `ImageError` for a case whose images are one and the same, or blank."""
    checked = predictor.check(pixels)
    cases = len(checked["mammography"])
    require_pairs(checked, lambda case: f"case {case} of the request (counted from 0): " if cases > 1 else "")
    return said_against(checked, predictor.bundle.modality_check)


def rows_of(texts: Sequence[str]) -> Array:
    """uint8 [n, bytes], UTF-8; what is shorter than the longest ends in spaces."""
    encoded = [text.encode() for text in texts]
    longest = max(map(len, encoded), default=0)
    return np.frombuffer(b"".join(one.ljust(longest) for one in encoded), np.uint8).reshape(len(texts), longest)


def _outcome(decoded: Future[Read]) -> Read:
    """What became of one request's files; whatever went wrong with them is nobody else's."""
    error = decoded.exception()
    return (as_ours(error), ()) if error is not None else decoded.result()


def _tensor(triton: Any, name: str, array: Array) -> Any:
    # A copy: NumPy hands out nothing that must not be written.
    owned = np.array(array, order="C")
    # Triton wants the usual strides of lengths of 0 and 1, too, which NumPy has others for.
    strides = owned.itemsize * np.cumprod([1, *owned.shape[:0:-1]], dtype=np.int64)[::-1]
    capsule = np.lib.stride_tricks.as_strided(owned, strides=tuple(strides.tolist())).__dlpack__()
    tensor = triton.Tensor.from_dlpack(name, capsule)
    # Who took what a capsule holds is to call it so; Triton calls it otherwise, and NumPy complains of each to stderr.
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), _TAKEN)
    return tensor


def failure(triton: Any, error: MpmmuError) -> Any:
    """The answer to one request that is refused: the two lines, and whose fault it is: the client's (HTTP 400), or
    the server's (500)."""
    theirs = isinstance(error, ImageError | PixelsError)
    code = triton.TritonError.INVALID_ARG if theirs else triton.TritonError.INTERNAL
    return triton.InferenceResponse(error=triton.TritonError(_told(error), code))


def _told(error: MpmmuError) -> str:
    return "\n".join([f"error: {error}", *([f"hint: {error.hint}"] if error.hint else [])])


@contextmanager
def _refused(triton: Any) -> Iterator[None]:
    """An error of ours is what Triton says of a model that is not ready."""
    try:
        yield
    except MpmmuError as error:
        raise triton.TritonModelException(_told(error)) from error


def _parameter(config: Mapping[str, Any], name: str) -> str:
    return str(config["parameters"][name]["string_value"])


def _bundle(args: Mapping[str, str], config: Mapping[str, Any]) -> Path:
    """Relative to the folder of the version that is loaded, or wherever it lies."""
    return Path(args["model_repository"]) / args["model_version"] / _parameter(config, "bundle")


def _require_the_same(bundle: Bundle, digest: str) -> None:
    """As the configuration tells clients which bundle answers, and what its threshold and its learners are."""
    if bundle.digest != digest:
        raise DigestMismatch(
            f"{bundle.path} is the bundle {bundle.digest[:12]}, expected {digest[:12]}, for which this repository was "
            "written",
            hint="write it again with `mpmmu-rt repository`, or copy that bundle back",
        )


def _instances(config: Mapping[str, Any]) -> int:
    groups: Iterable[Mapping[str, Any]] = config["instance_group"]
    return sum(int(group["count"]) * max(1, len(group.get("gpus") or ())) for group in groups)
