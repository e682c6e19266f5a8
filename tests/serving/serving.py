"""Servers that tests start, requests, and what is to come back."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt.errors import MpmmuError
from mpmmu_rt.serving.server import Addresses, free_port, installed
from mpmmu_rt.spec import MODALITIES, Array, Modality
from tests import test_predictor

BUNDLE = Path(__file__).parents[1] / "data/bundle_613dfc9"
SIZE = 32
Pixels = dict[Modality, Array]


def require_server() -> None:
    """Skip, with the reason, where there is no Triton server that fits, or no client."""
    pytest.importorskip(
        "tritonclient.grpc", reason="tritonclient is not installed: pip install 'tritonclient[grpc,http]'"
    )
    try:
        installed()
    except MpmmuError as error:
        pytest.skip(str(error))


def free_addresses() -> Addresses:
    found: list[int] = []
    while len(found) < 3:
        if (port := free_port()) not in found:
            found.append(port)
    return Addresses("127.0.0.1", *found)


@dataclass
class Running:
    process: subprocess.Popen[str]
    addresses: Addresses
    said: list[str] = field(default_factory=list)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.said.append(self.process.communicate(timeout=60)[1])
        return self.process.returncode


def command(bundle: Path, addresses: Addresses, *options: str) -> list[str]:
    ports = [text for name, port in addresses.ports.items() for text in (f"--{name}-port", str(port))]
    named = [] if "--target" in options else ["--target", "onnxruntime:fp32"]
    return [sys.executable, "-m", "mpmmu_rt", "serve", str(bundle), *ports, *named, *options]


@contextmanager
def running(bundle: Path, *options: str) -> Iterator[Running]:
    """`mpmmu-rt serve`, ready; killed at the end if it is still there."""
    require_server()
    addresses = free_addresses()
    process = subprocess.Popen(command(bundle, addresses, *options), stderr=subprocess.PIPE, text=True)
    found = Running(process, addresses)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            found.said.append(line)
            if line.startswith("ready: "):
                break
        else:
            pytest.fail("".join(found.said))
        yield found
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


class Client:
    """tritonclient of either protocol, on one server."""

    def __init__(self, protocol: str, addresses: Addresses) -> None:
        import importlib

        self._module: Any = importlib.import_module(f"tritonclient.{protocol}")
        self._client = self._module.InferenceServerClient(f"127.0.0.1:{addresses.ports[protocol]}")

    def ask(self, model: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `InferenceServerException` for a request that is refused."""
        types = {"uint8": "UINT8", "float32": "FP32", "int32": "INT32"}
        inputs = []
        for name, array in arrays.items():
            inputs.append(self._module.InferInput(name, list(array.shape), types[str(array.dtype)]))
            inputs[-1].set_data_from_numpy(array)
        answer = self._client.infer(model, inputs)
        outputs = answer.get_response()
        names = (
            [one["name"] for one in outputs["outputs"]]
            if isinstance(outputs, dict)
            else [o.name for o in outputs.outputs]
        )
        return {name: answer.as_numpy(name) for name in names}

    def close(self) -> None:
        self._client.close()


def refused() -> type[Exception]:
    from tritonclient.utils import InferenceServerException

    found: type[Exception] = InferenceServerException
    return found


def random_pixels(rng: np.random.Generator, cases: int, size: int = SIZE) -> Pixels:
    return {modality: rng.integers(0, 256, (cases, 1, size, size), np.uint8) for modality in MODALITIES}


def levels(*greys: int) -> Pixels:
    """`test_predictor.levels` of two images each, with something in both: two pixels that make up for each other."""
    pixels = test_predictor.levels(*greys)
    for row, modality in enumerate(MODALITIES):
        pixels[modality][:, 0, row, 0] -= 1
        pixels[modality][:, 0, row, 1] += 1
    return pixels


def named(pixels: Pixels) -> dict[str, Array]:
    return {f"{modality}_pixels": array for modality, array in pixels.items()}


def encoded(image: Array, kind: str) -> bytes:
    place = io.BytesIO()
    Image.fromarray(image).save(place, kind)
    return place.getvalue()


def as_sent(mammography: bytes, ultrasound: bytes) -> dict[str, Array]:
    files = (mammography, ultrasound)
    return {name: np.frombuffer(data, np.uint8)[None] for name, data in zip(MODALITIES, files, strict=True)}


def text(array: Array) -> str:
    return bytes(array[0]).decode()


def wait_until(done: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)
