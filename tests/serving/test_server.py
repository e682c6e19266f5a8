"""A real Triton server, started as users start it, asked by a real client over HTTP and gRPC."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import EngineError, MissingPackage, UsageError
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.serving import server as servers
from mpmmu_rt.serving.repository import Served, write_beside
from mpmmu_rt.spec import Array, Target

from .serving import (
    BUNDLE,
    Client,
    Running,
    as_sent,
    command,
    encoded,
    free_addresses,
    levels,
    named,
    random_pixels,
    refused,
    require_server,
    running,
    text,
)

pytestmark = pytest.mark.slow
# How far batches of 1 and of 2 to 32 move the Predictor's own answers: 8.4e-7 on such noise, as sums are blocked
# otherwise; twice that, and more.
BESIDE = 2e-6
PROTOCOLS = ("grpc", "http")
PAGE = (Path(__file__).resolve().parents[2] / "docs/serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(BUNDLE) as found:
        yield found


@pytest.fixture
def clients(server: Running) -> Iterator[dict[str, Client]]:
    found = {protocol: Client(protocol, server.addresses) for protocol in PROTOCOLS}
    yield found
    for client in found.values():
        client.close()


def check(got: dict[str, Array], want: Any, bundle: Bundle, within: float = 0) -> None:
    np.testing.assert_allclose(got["probability"][:, 0], want.probability, rtol=0, atol=within)
    np.testing.assert_allclose(got["base_probability"], want.base_probability, rtol=0, atol=within)
    np.testing.assert_array_equal(got["decision"][:, 0], want.malignant)
    assert {row.tobytes().hex() for row in got["bundle_digest"]} == {bundle.digest}


# ---------------------------------------------------------------- answers


def malformed(rng: np.random.Generator, kind: int) -> dict[str, Array]:
    if kind == 0:
        return named(random_pixels(rng, 2, size=31))
    if kind == 1:
        return {name: array.astype(np.float32) for name, array in named(random_pixels(rng, 1)).items()}
    if kind == 2:
        return named(random_pixels(rng, 33))
    if kind == 3:
        return {"mammography_pixels": random_pixels(rng, 1)["mammography"]}
    uneven = named(random_pixels(rng, 2))
    return {**uneven, "ultrasound_pixels": uneven["ultrasound_pixels"][:1]}


def test_200_requests_at_once_are_answered_to_the_bit_and_the_malformed_refused(
    server: Running, predictor: Predictor
) -> None:
    """Of 1 to 32 cases, over both protocols; every fifth malformed, in five ways. Those of 17 and more fit in no batch
    with another, and are the Predictor's to the bit; what shares a batch may move others in their last digit."""
    rng = np.random.default_rng(7)
    sizes = np.where(np.arange(200) < 80, rng.integers(17, 33, 200), rng.choice([1, 1, 1, 2, 3, 7], 200))
    good = [random_pixels(rng, int(size)) for size in sizes]
    bad = {index: malformed(rng, index // 5 % 5) for index in range(0, 200, 5)}
    local = threading.local()

    def ask(index: int) -> dict[str, Array] | str:
        protocol = PROTOCOLS[index % 2]
        if not hasattr(local, protocol):
            setattr(local, protocol, Client(protocol, server.addresses))
        try:
            found: dict[str, Array] = getattr(local, protocol).ask("mpmmu", bad.get(index, named(good[index])))
            return found
        except refused() as error:
            return str(error)

    with ThreadPoolExecutor(12) as pool:
        said = list(pool.map(ask, range(80)))
        said += pool.map(ask, range(80, 200))
    for index, answer in enumerate(said):
        if index in bad:
            assert isinstance(answer, str), index
            assert re.search(r"\[400\]|INVALID_ARGUMENT", answer), answer
        else:
            assert not isinstance(answer, str), answer
            check(answer, predictor.predict(good[index]), predictor.bundle, 0 if sizes[index] > 16 else BESIDE)


def test_triton_takes_greys_above_255_in_json_for_their_remainder(server: Running) -> None:
    """docs/serving.md warns of it: where a later Triton refuses them, it need not."""
    pixels = random_pixels(np.random.default_rng(8), 1)

    def ask(more: int) -> Any:
        inputs = [
            {"name": name, "shape": list(array.shape), "datatype": "UINT8", "data": [int(x) + more for x in array.flat]}
            for name, array in named(pixels).items()
        ]
        url = f"http://{server.addresses.url(server.addresses.http)}/v2/models/mpmmu/infer"
        with urllib.request.urlopen(url, json.dumps({"inputs": inputs}).encode(), timeout=60) as answer:
            return json.load(answer)["outputs"]

    assert ask(256 * 7) == ask(0)


def test_triton_does_not_look_at_the_checksum_of_gzip(server: Running) -> None:
    """docs/serving.md warns of it, too."""
    pixels = named(random_pixels(np.random.default_rng(8), 1))
    inputs = [
        {"name": name, "shape": list(array.shape), "datatype": "UINT8", "data": array.ravel().tolist()}
        for name, array in pixels.items()
    ]
    packed = gzip.compress(json.dumps({"inputs": inputs}).encode())
    ask = urllib.request.Request(f"{url(server)}/v2/models/mpmmu/infer", packed[:-8] + bytes(8))
    ask.add_header("Content-Encoding", "gzip")
    with urllib.request.urlopen(ask, timeout=60) as answer:
        assert json.load(answer)["outputs"]


def test_cases_of_several_clients_share_batches(server: Running) -> None:
    """Fewer executions than requests, by Triton's own count."""

    def count() -> tuple[int, int]:
        with urllib.request.urlopen(f"{url(server)}/v2/models/mpmmu/stats") as answer:
            (facts,) = json.load(answer)["model_stats"]
        return facts["inference_count"], facts["execution_count"]

    pixels = named(random_pixels(np.random.default_rng(8), 1))
    cases, executions = count()

    def ask(_: int) -> None:
        client = Client("grpc", server.addresses)
        for _ in range(20):
            client.ask("mpmmu", pixels)
        client.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    end = time.monotonic() + 10
    while (counted := count())[0] - cases < 160 and time.monotonic() < end:  # it counts after it has answered
        time.sleep(0.05)
    now_cases, now_executions = counted
    assert now_cases - cases == 160
    assert now_executions - executions < 160


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files(
    protocol: str, clients: dict[str, Client], predictor: Predictor, save_dicom: Callable[..., Path], tmp_path: Path
) -> None:
    """Each answered as the same files from disk, or refused on its own; what a header says comes along."""
    rng = np.random.default_rng(9)
    grey = rng.integers(0, 256, (50, 40), np.uint8)
    images = [encoded(rng.integers(0, 256, (50, 40), np.uint8), kind) for kind in ("PNG", "JPEG", "BMP")]
    dicom = save_dicom(grey.astype(np.uint16) * 16, BitsStored=12).read_bytes()
    sent = [(images[0], images[1]), (dicom, images[2]), (images[0][:-9], images[1]), (images[0], dicom), (dicom, dicom)]
    paths = [tmp_path / name for name in ("m", "u")]
    for pair in sent[:2]:
        for path, data in zip(paths, pair, strict=True):
            path.write_bytes(data)
        check(clients[protocol].ask("mpmmu_files", as_sent(*pair)), predictor.predict_files(*paths), predictor.bundle)
    for pair, says in zip(sent[2:], ("`mammography` ", "`ultrasound` ", "are the same, pixel by pixel"), strict=True):
        with pytest.raises(refused(), match=says) as caught:
            clients[protocol].ask("mpmmu_files", as_sent(*pair))
        assert "\nhint: " in str(caught.value)


def test_what_a_header_says_against_an_image_is_in_the_answer(
    clients: dict[str, Client], save_dicom: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(10)
    stored = rng.integers(0, 256, (50, 40), np.uint8)
    data = save_dicom(stored, PixelSpacing=[0.2, 0.1]).read_bytes()
    ultrasound = encoded(stored[::-1], "PNG")
    said = clients["grpc"].ask("mpmmu_files", as_sent(data, ultrasound))
    assert text(said["warnings"]).startswith("mammography: ")
    assert "its pixels are not square" in text(said["warnings"])


def url(server: Running) -> str:
    return f"http://127.0.0.1:{server.addresses.http}"


def test_the_page_of_it(server: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, predictor: Predictor) -> None:
    """Its Python blocks run as they are, but for the ports; its JSON is answered."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(11)
    for name, kind in (("mammogram.png", "PNG"), ("ultrasound.jpg", "JPEG")):
        Path(name).write_bytes(encoded(rng.integers(0, 256, (60, 50), np.uint8), kind))
    want = predictor.predict_files("mammogram.png", "ultrasound.jpg")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        code = block.replace("localhost:8000", f"127.0.0.1:{server.addresses.http}")
        code = code.replace("localhost:8001", f"127.0.0.1:{server.addresses.grpc}")
        names: dict[str, Any] = {"bundle_folder": BUNDLE}
        with redirect_stdout(io.StringIO()) as printed:
            exec(code.replace('"model.bundle"', repr(str(BUNDLE))), names)
        assert f"{want.probability[0]:.4f}" in printed.getvalue()
    size = predictor.bundle.preprocessing.size
    (body,) = re.findall(r"^    (\{\"inputs\".*\}\]\})$", PAGE, re.MULTILINE)
    grey = random_pixels(rng, 1, size=size)
    body = body.replace("224", str(size))
    for array in grey.values():
        body = body.replace("[0, …]", json.dumps(array.ravel().tolist()), 1)
    request = json.loads(body)
    ask = urllib.request.Request(f"{url(server)}/v2/models/mpmmu/infer", json.dumps(request).encode())
    with urllib.request.urlopen(ask) as answer:
        said = {one["name"]: one["data"] for one in json.load(answer)["outputs"]}
    assert np.float32(said["probability"][0]) == predictor.predict(grey).probability[0]
    assert bytes(said["bundle_digest"]).hex() == predictor.bundle.digest


def test_what_the_server_says_of_itself(server: Running, predictor: Predictor) -> None:
    with urllib.request.urlopen(f"{url(server)}/v2/models/mpmmu/config") as answer:
        parameters = json.load(answer)["parameters"]
    assert parameters["bundle_digest"]["string_value"] == predictor.bundle.digest
    assert parameters["threshold"]["string_value"] == "0.4"
    with urllib.request.urlopen(f"http://127.0.0.1:{server.addresses.metrics}/metrics") as answer:
        assert b'nv_inference_request_success{model="mpmmu"' in answer.read()
    assert "digests and golden vectors come first" in server.said[0]


# ---------------------------------------------------------------- errors of one case, and the end


def test_a_bundle_whose_name_is_not_ascii(tmp_path: Path, predictor: Predictor) -> None:
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "é ü.bundle"))
    pixels = random_pixels(np.random.default_rng(13), 2)
    with running(folder) as server:
        client = Client("grpc", server.addresses)
        check(client.ask("mpmmu", named(pixels)), predictor.predict(pixels), predictor.bundle)
        client.close()
        assert server.end() == 0, server.said
    Bundle.open(folder)


def test_a_case_without_a_number_is_its_own_requests_error_and_ctrl_c_ends_the_server(rooted: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("mpmmu-rt-*"))
    shared = {path.name for path in Path("/dev/shm").glob("mpmmu-rt-*")}
    with running(rooted, "--max-delay", "50ms") as server:
        answered = 0

        def ask(grey: int) -> tuple[int, dict[str, Array] | str]:
            client = Client("grpc", server.addresses)
            try:
                return grey, client.ask("mpmmu", named(levels(grey)))
            except refused() as error:
                return grey, str(error)
            finally:
                client.close()

        with ThreadPoolExecutor(8) as pool:
            for grey, said in pool.map(ask, [10, 250, 20, 240, 230, 30, 220, 210] * 5):
                if grey < 128:
                    assert isinstance(said, str)
                    assert "gave no number for the cases 0 of the request" in said
                else:
                    assert not isinstance(said, str), said
                    np.testing.assert_allclose(said["probability"], [[(grey / 255 - 0.5) ** 0.5]], atol=1e-6)
                    assert text(said["warnings"]).startswith("UNTRAINED")
                    answered += 1
        assert answered == 25
        assert server.end(signal.SIGINT) == 0, server.said
        assert set(Path(tempfile.gettempdir()).glob("mpmmu-rt-*")) <= before  # no folder stays, nor shared memory
        assert {path.name for path in Path("/dev/shm").glob("mpmmu-rt-*")} <= shared
    assert "stopped: every accepted request was answered" in server.said[-1]


def test_told_to_stop_under_load_it_answers_what_it_accepted(predictor: Predictor) -> None:
    """Every request of both protocols, until it refuses: an answer that is right, or the server's own refusal."""
    rng = np.random.default_rng(12)
    pixels = [random_pixels(rng, 20) for _ in range(4)]
    want = [predictor.predict(one) for one in pixels]
    ends: list[str] = []
    spanning = 0
    told = threading.Event()
    with running(BUNDLE) as server:

        def ask(number: int) -> None:
            nonlocal spanning
            client = Client(PROTOCOLS[number % 2], server.addresses)
            index = number
            while True:
                index = (index + 1) % len(pixels)
                before = told.is_set()
                try:
                    said = client.ask("mpmmu", named(pixels[index]))
                except Exception as error:  # noqa: BLE001 - whatever a client sees is what is judged
                    ends.append(f"{type(error).__name__}: {error}")
                    return
                spanning += told.is_set() and not before
                check(said, want[index], predictor.bundle)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        told.set()
        assert server.end(signal.SIGTERM) == 0, server.said
        for thread in threads:
            thread.join(30)
    assert len(ends) == 8
    for end in ends:
        assert re.search(r"Request for unknown model|is not ready|stopping", end), ends
    assert spanning
    assert "stopped: every accepted request was answered" in server.said[-1]


# ---------------------------------------------------------------- what does not start


def test_a_port_that_is_taken(server: Running) -> None:
    taken = servers.Addresses("127.0.0.1", free_addresses().http, server.addresses.grpc, free_addresses().metrics)
    ran = subprocess.run(command(BUNDLE, taken), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    first, second = ran.stderr.splitlines()
    assert first.startswith(f"error: port {server.addresses.grpc} of 127.0.0.1 can't be used for grpc (Address already")
    assert re.match(r"hint: end what listens there, or name another: --grpc-port \d+", second)


def test_an_address_that_not_all_listeners_take() -> None:
    with pytest.raises(UsageError, match="the host is ::1"):
        servers.check_ports(servers.Addresses("::1"))


def test_one_port_for_two() -> None:
    require_server()
    addresses = servers.Addresses("127.0.0.1", *[free_addresses().http] * 3)
    ran = subprocess.run(command(BUNDLE, addresses), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert "as --http-port does" in ran.stderr


def test_a_bundle_that_is_altered_before_it_is_loaded_never_gets_ready(tmp_path: Path) -> None:
    require_server()
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "b.bundle"))
    (repository := tmp_path / "models").mkdir()
    asked = Served(Target("onnxruntime", "fp32"))
    write_beside(Bundle.open(folder), repository, asked)
    path = folder / "onnx/head_onnxruntime.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with servers.started(repository, free_addresses()) as server:
        with pytest.raises(EngineError, match=r"before its models were ready.*head_onnxruntime\.onnx has \d+ bytes"):
            server.wait_ready((asked.name, asked.files_name))
        assert "At:" not in servers.reason(server.log)  # Python's traceback
        assert server.process.returncode
    ran = subprocess.run(command(folder, free_addresses()), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 3


def test_a_log_is_gone_on_with_and_each_start_read_by_itself(tmp_path: Path) -> None:
    require_server()
    (repository := tmp_path / "models").mkdir()
    log, before = tmp_path / "serve.log", b"mpmmu-rt serve, of before\nException: error: of before\n"
    log.write_bytes(before)
    with servers.started(repository, free_addresses(), log=log) as server:
        end = time.monotonic() + 60
        while log.stat().st_size < server.since + 200 and time.monotonic() < end:
            time.sleep(0.1)
    data = log.read_bytes()
    assert data.startswith(before + b"mpmmu-rt serve ")
    assert len(data) >= server.since + 200
    assert "of before" in servers.reason(log)
    assert "of before" not in servers.reason(log, server.since) + servers.tail(log, server.since)
    log.write_bytes(data[server.since + 1 :])  # as a rotation may leave it
    servers.require_log(log)


def test_a_log_that_is_renamed_costs_no_answer(tmp_path: Path) -> None:
    """As a rotation does it: the server goes on writing to it, and what it says there tells when all is answered."""
    with running(BUNDLE, "--log", str(tmp_path / "serve.log")) as found:
        (tmp_path / "serve.log").rename(tmp_path / "serve.log.1")
        found.process.send_signal(signal.SIGTERM)
        _, said = found.process.communicate(timeout=60)
    assert "stopped: every accepted request was answered" in said
    assert found.process.returncode == 0
    assert b"successfully unloaded 'mpmmu'" in (tmp_path / "serve.log.1").read_bytes()


def test_a_python_that_the_server_has_no_process_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a wheel that is older than this Python, by a package of the same layout."""
    stub = tmp_path / "pytriton/tritonserver/python_backend_stubs/3.8/triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.write_bytes(b"")
    (tmp_path / "pytriton/__init__.py").write_text("raise RuntimeError('nothing of it is imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match=r"this is Python 3\.\d+, and the Triton server .* in Python 3\.8$"):
        servers.installed()


def test_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="`nvidia-pytriton`") as caught:
        servers.installed()
    assert "mpmmu-rt[serve]" in caught.value.hint


def test_a_proxy_is_not_asked_whether_the_server_is_ready(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there, and what did would answer anything."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked = servers.Server(server.process, Path(), server.addresses, Path(), 1)  # type: ignore[arg-type]
    asked.wait_ready(("mpmmu", "mpmmu_files"))


# ---------------------------------------------------------------- a process that runs a model ends


def children(parent: int) -> dict[int, str]:
    """The processes that it started, and their command lines."""
    found: dict[int, str] = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if int((place / "stat").read_text().rpartition(") ")[2].split()[1]) == parent:
                found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ")
    return found


@pytest.mark.parametrize("model", ["mpmmu", "mpmmu_files"])
def test_a_server_whose_model_lost_its_process_ends(model: str) -> None:
    """Triton 2.51 by itself calls that model ready from then on, and refuses every request."""
    with running(BUNDLE) as server:
        (triton,) = children(server.process.pid)
        (one,) = (pid for pid, args in children(triton).items() if f"/{model}/1/model.py" in args)
        os.kill(one, signal.SIGKILL)
        assert server.process.stderr is not None
        said = server.process.communicate(timeout=30)[1]
        assert server.process.returncode == 1
    *_, error, hint = said.splitlines()
    assert error.startswith(f"error: a process that runs the model {model} ended, expected it to run until")
    assert hint.startswith("hint: too little memory")
    assert hint.endswith("start it again")


def test_told_to_stop_it_does_not_wait_for_a_process_that_has_ended() -> None:
    with running(BUNDLE) as server:
        (triton,) = children(server.process.pid)
        for pid in children(triton):
            os.kill(pid, signal.SIGKILL)
        server.end(signal.SIGTERM)
        assert not any("still unanswered" in text for text in server.said), "it waited until its time was over"
