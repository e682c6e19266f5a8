"""Nothing leaves the machine, and no library leaves a file in the user's home.

Every process runs with a library preloaded that notes names that are looked up and connections that are made, and with
an empty HOME. ONNX Runtime reports after some 9 s of work: these are longer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import COMMAND_WITH_FEW_TREES

BUNDLE = Path(__file__).parent / "data" / "bundle_613dfc9"
SOURCE = Path(__file__).parent / "calls_home.c"
SECONDS = 13
PREDICT = """
import sys, time
import numpy as np
import mpmmu_rt
end = time.monotonic() + float(sys.argv[3])
with mpmmu_rt.load(sys.argv[1], sys.argv[2]) as predictor:
    pixels = {name: np.full((8, 1, 32, 32), 7, np.uint8) for name in ("mammography", "ultrasound")}
    while time.monotonic() < end:
        predictor.predict(pixels)
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="gcc on Linux is missing"),
]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "calls_home.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def traced(shim: Path, folder: Path, *command: str) -> tuple[list[str], list[str]]:
    """What a process asked of the network, and the files that it left in HOME."""
    home = folder / "home"
    home.mkdir()
    calls = folder / "calls"
    gone = ("ORT_", "XDG_", "PYTEST_")  # what this process has set by now, or points elsewhere
    environment = {name: value for name, value in os.environ.items() if not name.startswith(gone)}
    environment |= {"HOME": str(home), "LD_PRELOAD": str(shim), "CALLS_HOME": str(calls)}
    line = [sys.executable, *command]
    ran = subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    left = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    return calls.read_text().splitlines() if calls.exists() else [], left


def test_what_is_asked_of_the_network_is_seen(shim: Path, tmp_path: Path) -> None:
    code = "import contextlib, socket\nwith contextlib.suppress(OSError): socket.getaddrinfo('nowhere.invalid', 443)\n"
    code += "with contextlib.suppress(OSError): socket.create_connection(('127.0.0.1', 9), 1)"
    assert traced(shim, tmp_path, "-c", code)[0] == ["getaddrinfo nowhere.invalid", "getaddrinfo 127.0.0.1"]


def test_predicting_sends_nothing_and_leaves_nothing(shim: Path, tmp_path: Path) -> None:
    """On both engines: OpenVINO's stacking head runs on ONNX Runtime."""
    assert traced(shim, tmp_path, "-c", PREDICT, str(BUNDLE), "openvino:fp32", str(SECONDS)) == ([], [])


@pytest.mark.parametrize(
    "command",
    [
        ("doctor",),
        ("inspect", str(BUNDLE)),
        ("verify", str(BUNDLE), "--target", "openvino:int8", "--no-record"),
        ("bench", str(BUNDLE), "--batch", "4", "--seconds", str(SECONDS)),
    ],
    ids=lambda command: command[0],
)
def test_commands_send_nothing_and_leave_nothing(shim: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    assert traced(shim, tmp_path, "-m", "mpmmu_rt", *command) == ([], [])


def test_training_and_export_send_nothing_and_leave_nothing(
    shim: Path, tmp_path: Path, checkpoint_folder: Path, phantom_manifest: Path
) -> None:
    commands = {
        "export": (
            str(checkpoint_folder),
            "-o",
            "b",
            "--calibrate",
            str(phantom_manifest),
            "--target",
            "openvino:fp32",
        ),
        "train": ("--phantom", "60", "--preset", "tiny", "--epochs", "1", "-o", "checkpoint"),
    }
    programs = {"export": ("-m", "mpmmu_rt"), "train": COMMAND_WITH_FEW_TREES}
    for name, arguments in commands.items():
        folder = tmp_path / name
        folder.mkdir()
        assert traced(shim, folder, *programs[name], name, *arguments) == ([], [])


def test_the_user_may_turn_telemetry_on() -> None:
    code = "import os, mpmmu_rt; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, want in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")} | given
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == want
