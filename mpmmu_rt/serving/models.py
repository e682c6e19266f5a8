"""What Triton's Python backend runs. `model.py` of a repository has a class that derives from one of these.

Numbers go to and from Triton by DLPack alone: Triton's Python backend up to 2.51 at least was built for NumPy 1, and
under NumPy 2 what it makes of NumPy's arrays has no bytes, and what it makes of BYTES ends its process. So texts and
files are uint8 tensors, too.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.checks import figure
from mpmmu_rt.engines import engine
from mpmmu_rt.errors import EngineError, ImageError, MpmmuError, ParityError, PixelsError
from mpmmu_rt.machine import usable_threads
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verify import replay

from .answers import Answer, Pixels, answers, read_pair

# Of a file that is sent: more than any mammogram, and what a request may cost a server in memory.
MAX_SENT_BYTES = 128 * 2**20
_TAKEN = ctypes.c_char_p(b"used_dltensor")  # of DLPack; lives as long as any capsule
OUTPUTS = ("probability", "base_probability", "decision", "bundle_digest", "warnings")


class PixelsModel:
    """`mpmmu`: pixels uint8 [n, 1, S, S] of both modalities to what `OUTPUTS` names. Ready once the bundle's digests
    held and its golden vectors were replayed on the target."""

    triton: Any  # the module triton_python_backend_utils, which only Triton's process has

    def initialize(self, args: Mapping[str, str]) -> None:
        with _refused(self.triton):
            config = json.loads(args["model_config"])
            bundle = Bundle.open(_bundle(args, config))
            target = Target.parse(_parameter(config, "target"))
            engine(target)
            bundle.require_proven(target)
            self._predictor = Predictor(bundle, target, threads=max(1, usable_threads() // _instances(config)))
            require_replayed(self._predictor)
            self._constant = constant(bundle)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        said = answers(self._predictor, [self._pixels(request) for request in requests])
        return [self._response(one) for one in said]

    def _pixels(self, request: Any) -> Pixels | MpmmuError:
        found: dict[Modality, Array] = {}
        for modality in MODALITIES:
            tensor = self.triton.get_input_tensor_by_name(request, f"{modality}_pixels")
            if tensor is None:
                return PixelsError(f"the request has no `{modality}_pixels`, expected both", hint="send both images")
            found[modality] = np.from_dlpack(tensor)
        return found

    def _response(self, said: Answer | MpmmuError) -> Any:
        if isinstance(said, MpmmuError):
            return failure(self.triton, said)
        cases = len(said.probability)
        arrays = {"probability": said.probability, "decision": said.decision}
        if said.base_probability is not None:
            arrays["base_probability"] = said.base_probability
        arrays |= {name: np.repeat(row[None], cases, axis=0) for name, row in self._constant.items()}
        return self.triton.InferenceResponse(tensors(self.triton, arrays))

    def finalize(self) -> None:
        if hasattr(self, "_predictor"):
            self._predictor.close()


class FilesModel:
    """`mpmmu_files`: one case's two files, as they are, to the same answer.

    It decodes, and asks the pixels model of its repository for the rest, by a request for each case: so that there is
    one Predictor in memory, cases of all clients share its batches, and an answer that fails is one request's.
    """

    triton: Any

    def initialize(self, args: Mapping[str, str]) -> None:
        with _refused(self.triton):
            config = json.loads(args["model_config"])
            bundle = Bundle.open(_bundle(args, config))
            self._pixels_model, self._version = _parameter(config, "pixels_model"), int(args["model_version"])
            self._preprocessing, self._check = bundle.preprocessing, bundle.modality_check
            self._constant = constant(bundle)
            self._outputs = [one["name"] for one in config["output"] if one["name"] != "warnings"]
            self._pool = ThreadPoolExecutor(usable_threads(), thread_name_prefix="decode")

    async def execute(self, requests: Sequence[Any]) -> list[Any]:
        return list(await asyncio.gather(*map(self._answer, requests)))

    async def _answer(self, request: Any) -> Any:
        try:
            loop = asyncio.get_running_loop()
            pixels, warnings = await loop.run_in_executor(self._pool, self._read, request)
            answer = await self._ask(pixels)
            if answer.has_error():
                return self.triton.InferenceResponse(error=answer.error())
            arrays = {one.name(): np.from_dlpack(one) for one in answer.output_tensors()}
            self._require_same(arrays["bundle_digest"])
        except MpmmuError as error:
            return failure(self.triton, error)
        own = self._constant["warnings"].tobytes().decode()
        arrays["warnings"] = as_bytes("; ".join([*([own] if own else []), *warnings]))[None]
        return self.triton.InferenceResponse(tensors(self.triton, arrays))

    def _read(self, request: Any) -> tuple[dict[Modality, Array], tuple[str, ...]]:
        files: dict[Modality, memoryview] = {}
        for modality in MODALITIES:
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
            files[modality] = np.ascontiguousarray(data[0]).data
        frame = self.triton.get_input_tensor_by_name(request, "frame")
        chosen = None if frame is None else int(np.from_dlpack(frame).reshape(-1)[0])
        if chosen is not None and chosen < 0:
            raise ImageError(f"`frame` is {chosen}, expected a number from 0", hint="leave it out for single images")
        return read_pair(files, self._preprocessing, frame=chosen, check=self._check)

    async def _ask(self, pixels: Mapping[Modality, Array]) -> Any:
        return await self.triton.InferenceRequest(
            model_name=self._pixels_model,
            model_version=self._version,
            requested_output_names=self._outputs,
            inputs=tensors(self.triton, {f"{name}_pixels": array for name, array in pixels.items()}),
        ).async_exec()

    def _require_same(self, digest: Array) -> None:
        """Pixels that were made for one bundle say nothing to another."""
        if not np.array_equal(digest[0], self._constant["bundle_digest"]):
            raise EngineError(
                f"`{self._pixels_model}` answers for the bundle {bytes(digest[0]).hex()[:12]}, expected "
                f"{self._constant['bundle_digest'].tobytes().hex()[:12]}, which the files were decoded for",
                hint="write the repository again, and start the server on it",
            )

    def finalize(self) -> None:
        if hasattr(self, "_pool"):
            self._pool.shutdown()


def require_replayed(predictor: Predictor) -> None:
    """Raise `ParityError` unless the golden vectors come out as they were sealed."""
    failed = [check for check in replay(predictor) if not check.passed]
    if failed:
        first = failed[0]
        raise ParityError(
            f"{predictor.target} does not compute the bundle here: {first.name} is {figure(first.value)}, expected at "
            f"most {figure(first.limit)}",
            hint="`mpmmu-rt verify BUNDLE --target TARGET` names the stage; use another target or version of the "
            "engine",
        )


def constant(bundle: Bundle) -> dict[str, Array]:
    """What every answer says, uint8 each: the SHA-256 of bundle.json [32], and the bundle's warning in UTF-8."""
    return {
        "bundle_digest": np.frombuffer(bytes.fromhex(bundle.digest), np.uint8).copy(),
        "warnings": as_bytes(bundle.warning or ""),
    }


def as_bytes(text: str) -> Array:
    """uint8, UTF-8; owned and writable, which DLPack wants."""
    return np.frombuffer(text.encode(), np.uint8).copy()


def tensors(triton: Any, arrays: Mapping[str, Array]) -> list[Any]:
    return [_tensor(triton, name, array) for name, array in arrays.items()]


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


def _instances(config: Mapping[str, Any]) -> int:
    groups: Iterable[Mapping[str, Any]] = config["instance_group"]
    return sum(int(group["count"]) * max(1, len(group.get("gpus") or ())) for group in groups)
