"""Modules of users': what is copied and exported as it is called, and what is refused before anything is converted."""

from __future__ import annotations

import re
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from mpmmu_rt import predictor as predictors
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import ExportError, ParityError, UnfitTarget
from mpmmu_rt.export import Data, Limits, Wanted, export_bundle
from mpmmu_rt.export.encoders import Encoders
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import MODALITIES, Target

SIZE, WIDTH = 32, 4
PREPROCESSING = Preprocessing(size=SIZE)


class Net(nn.Module):
    """A module of a user's that is as it should be."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 6, 3, 2, 1)
            self.linear: nn.Module = nn.Linear(6, WIDTH)

    def map(self, pixels: Tensor) -> Tensor:
        return torch.relu(self.conv(pixels.float() / 255))

    def forward(self, pixels: Tensor) -> Any:
        return self.linear(self.map(pixels).mean((2, 3)))


Forward = Callable[[Net, Tensor], Any]


def net(forward: Forward) -> Net:
    """A `Net` whose class has this `forward`."""
    return type("Net", (Net,), {"forward": forward})()  # type: ignore[no-any-return]


def pixels(count: int = 2) -> Tensor:
    return torch.from_numpy(phantom_pixels(count, seed=3, preprocessing=PREPROCESSING)[0]["mammography"])


def head() -> Any:
    """Of embeddings whose first value is small, and decides as much as any other."""
    rng = np.random.default_rng(0)
    scale = np.array([1.0, *[1e5] * (WIDTH - 1), *[1.0] * WIDTH])
    classifier = make_pipeline(StandardScaler(), LogisticRegression())
    return classifier.fit(scale * rng.normal(size=(60, 2 * WIDTH)), np.arange(60) % 2)


@pytest.fixture(scope="module")
def cases() -> Data:
    drawn, labels = phantom_pixels(8, seed=4, preprocessing=PREPROCESSING)
    return Data(drawn, labels, "8 of mine", tuple(f"P{row}" for row in range(8)))


def exported(
    folder: Path, cases: Data, module: nn.Module, other: nn.Module | None = None, wanted: Wanted | None = None
) -> Bundle:
    return export_bundle(
        folder / "b",
        mammography=module,
        ultrasound=other or Net(),
        head=head(),
        preprocessing=PREPROCESSING,
        parity_cases=cases,
        wanted=wanted or Wanted(()),
    )


def graph_of(module: nn.Module) -> object:
    return Encoders({"mammography": module, "ultrasound": Net()}, SIZE).features_graph("mammography")


# What can't be deep-copied, or is called through something else, and says what `Net` says.


def heat_map() -> nn.Module:
    def forward(self: Net, pixels: Tensor) -> Tensor:
        self.last = [self.map(pixels)]  # type: ignore[assignment]
        return self.linear(self.last[0].mean((2, 3)))  # type: ignore[index,no-any-return]

    module = net(forward)
    module(pixels())
    return module


def weight_norm() -> nn.Module:
    module = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in the modules that users have
        module.linear = torch.nn.utils.weight_norm(module.linear)
    return module


def spectral_norm() -> nn.Module:
    def forward(self: Net, pixels: Tensor) -> Tensor:
        return self.linear(self.map(pixels).mean((2, 3)))  # type: ignore[no-any-return]

    module = net(forward)
    module.linear = torch.nn.utils.spectral_norm(module.linear)
    module(pixels())
    return module


def locked() -> nn.Module:
    def forward(self: Any, pixels: Tensor) -> Any:
        with self.kept["lock"]:
            return self.reference()(Net.map(self, pixels).mean((2, 3)))

    module: Any = net(forward)
    module.kept = {"lock": threading.Lock()}
    module.reference = weakref.ref(module.linear)
    module.lines = (line for line in "abc")
    return module  # type: ignore[no-any-return]


def compiled() -> nn.Module:
    """A compiler that fails: the module is not compiled, but called."""

    def fails(graph: object, example: object) -> Any:
        raise AssertionError("compiled")

    return torch.compile(Net(), backend=fails)  # type: ignore[return-value]


def calls_the_original() -> nn.Module:
    """By a closure that no copy has another of; and it is in training mode."""
    module = Net()
    drop, inner = nn.Dropout(0.5), module.forward
    module.drop = drop
    module.forward = lambda pixels: drop(inner(pixels))  # type: ignore[method-assign]
    return module.train()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"), [(heat_map, weight_norm), (locked, spectral_norm), (compiled, calls_the_original)]
)
def test_what_is_hard_to_copy_is_exported_and_left_as_it_was(
    first: Callable[[], nn.Module], second: Callable[[], nn.Module], tmp_path: Path, cases: Data
) -> None:
    modules = {"mammography": first(), "ultrasound": second()}
    modes = {part: part.training for module in modules.values() for part in module.modules()}
    exported(tmp_path, cases, modules["mammography"], modules["ultrasound"])
    assert {part: part.training for module in modules.values() for part in module.modules()} == modes
    want = []
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for modality in MODALITIES:
            for part in modules[modality].modules():
                part.training = False
            want.append(modules[modality](torch.from_numpy(cases.pixels[modality])).numpy())
    with predictors.load(tmp_path / "b") as predictor:
        got = predictor.predict(cases.pixels).embedding
    np.testing.assert_allclose(got, np.concatenate(want, 1), atol=1e-6)


# What has no weights, no Python or no float32 to export.


def lazy() -> nn.Module:
    module = Net()
    module.linear = nn.LazyLinear(WIDTH)
    return module


def on_meta() -> nn.Module:
    return Net().to("meta")


def scripted_within() -> nn.Module:
    module = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        module.linear = torch.jit.script(module.linear)
    return module


def licensed() -> nn.Module:
    def refuse(self: Net, memo: object) -> Net:
        raise RuntimeError("this module can't be copied\nat all")

    return type("Net", (Net,), {"__deepcopy__": refuse})()  # type: ignore[no-any-return]


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have torchao
        return torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear})  # type: ignore[no-untyped-call,no-any-return]


@pytest.mark.parametrize(
    ("make", "message", "hint"),
    [
        (lazy, "has never been called: `linear.weight` and 1 more", "call it once"),
        (on_meta, r"holds no values in `conv.weight` and 3 more \(device `meta`\)", "load_state_dict"),
        (scripted_within, r"is TorchScript \(`linear`\)", "load_state_dict"),
        (quantized, r"is quantized already \(`linear` and 1 more\)", "export the float module"),
        (licensed, r"can't be copied \(this module can't be copied\), expected", "load_state_dict"),
        (lambda: net(lambda s, p: (Net.forward(s, p), p)), "gives a tuple of 2", "embedding alone"),
        (lambda: net(lambda s, p: {"e": Net.forward(s, p)}), "gives a dict with e,", "embedding alone"),
        (lambda: net(lambda s, p: Net.forward(s, p).double()), r"gives float64\[2, 4\]", r"\.float\(\)"),
        (lambda: net(lambda s, p: Net.forward(s, p).bfloat16()), r"gives bfloat16\[2, 4\]", r"\.float\(\)"),
        (lambda: net(lambda s, p: s.map(p)), r"gives float32\[2, 6, 16, 16\]", r"mean\(\(2, 3\)\)"),
        (lambda: net(lambda s, p: Net.forward(s, p).squeeze(0)), r"float32\[4\] for one case", r"flatten\(1\)"),
        (lambda: net(lambda s, p: Net.forward(s, p).to_sparse()), "torch.sparse_coo", "layout"),
        (lambda: net(lambda s, p: Net.forward(s, p).to("meta")), "on `meta`", "device"),
        (lambda: net(lambda s, p: s.conv(p.half())), r"fails on pixels uint8\[2, 1, 32, 32\]: .*[Hh]alf", "autocast"),
    ],
)
def test_what_gives_no_embedding(make: Callable[[], nn.Module], message: str, hint: str) -> None:
    modules = {"mammography": Net(), "ultrasound": make()}
    with pytest.raises(ExportError, match=rf"^the ultrasound module \(\w+\) .*{message}") as caught:
        Encoders(modules, SIZE)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert re.search(hint, caught.value.hint)


# What is no function of the case: the original is held to itself.


def remembering(self: Any, pixels: Tensor) -> Any:
    self.mean.mul_(0.9).add_(0.1 * self.map(pixels).mean((0, 2, 3)))
    return self.linear(self.map(pixels).mean((2, 3)) - self.mean)


def running() -> nn.Module:
    module = net(remembering)
    module.register_buffer("mean", torch.zeros(6))
    return module


def turns() -> nn.Module:
    said = [1.0]

    def forward(self: Net, pixels: Tensor) -> Any:
        said.append(-said[-1])
        return Net.forward(self, pixels) * said[-1]

    return net(forward)


def small_and_decisive(self: Net, pixels: Tensor) -> Any:
    """A value too small to be seen beside the others, which depends on the batch."""
    out = Net.forward(self, pixels)
    return torch.cat([pixels.float().mean().expand(len(out), 1) / 10, 1e5 * torch.ones_like(out[:, 1:])], 1)


@pytest.mark.parametrize(
    ("make", "way", "hint"),
    [
        (lambda: net(lambda s, p: functional.dropout(Net.forward(s, p), 0.3)), "asked again", "random numbers"),
        (lambda: net(lambda s, p: Net.forward(s, p) + 3e-5 * torch.randn(4)), "asked again", "random numbers"),
        (turns, "asked again", "between calls"),
        (running, "asked again", "its own `mean`"),
        (lambda: net(lambda s, p: Net.forward(s, p) - Net.forward(s, p).mean(0)), "comes alone", "depend on others"),
        (
            lambda: net(lambda s, p: Net.forward(s, p) * (2 if len(p) == 1 else 1)),
            "for a case that comes alone: case `P[0-7]` differs by",
            "depend on others",
        ),
        (lambda: net(lambda s, p: Net.forward(s, p) * (2 if len(p) == 3 else 1)), "among 3, in another order", "`if`"),
        (lambda: net(lambda s, p: Net.forward(s, p).roll(len(p) // 7, 0)), "among 7|comes alone", "`if`"),
        (lambda: net(lambda s, p: Net.forward(s, p) + torch.is_grad_enabled()), "with autograd", "knows none"),
        (lambda: net(lambda s, p: Net.forward(s, p) + torch.is_inference_mode_enabled()), "inference_mode", "none"),
        (lambda: net(lambda s, p: Net.forward(s, p) * torch.get_num_threads()), "number of threads", "threads"),
        (lambda: net(lambda s, p: Net.forward(s, p) + p.is_contiguous()), "not contiguous", "strides"),
        (lambda: net(small_and_decisive), "comes alone: case `P[0-7]` moves its probability", "depend on others"),
    ],
)
def test_what_is_no_function_of_the_case(
    make: Callable[[], nn.Module], way: str, hint: str, tmp_path: Path, cases: Data
) -> None:
    with pytest.raises(ExportError, match=rf"^the mammography module \(Net\) gives another answer .*({way})") as caught:
        exported(tmp_path, cases, make())
    assert "case `P" in str(caught.value)
    assert re.search(hint, caught.value.hint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "forward",
    [
        lambda s, p: s.linear(torch.from_numpy(s.map(p).numpy().mean((2, 3)))),  # fails where autograd is on
        lambda s, p: s.linear(s.map(p.view(p.shape[0], 1, -1).view(p.shape)).mean((2, 3))),  # … pixels not contiguous
    ],
)
def test_what_nobody_asks_may_fail(forward: Forward, tmp_path: Path, cases: Data) -> None:
    exported(tmp_path, cases, net(forward))


def logarithm(self: Net, pixels: Tensor) -> Tensor:
    return torch.log(functional.avg_pool2d(pixels.float(), 16).flatten(1) - 60)


@pytest.mark.parametrize(
    ("make", "hint"), [(lambda: net(logarithm), "clamp"), (lambda: broken(), "its weights `conv.bias` are not finite")]
)
def test_not_a_number_names_the_cases(make: Callable[[], nn.Module], hint: str, tmp_path: Path, cases: Data) -> None:
    module = make()
    with torch.no_grad():
        said = module(torch.from_numpy(cases.pixels["mammography"].copy()))
    bad = [row for row, values in enumerate(said) if not torch.isfinite(values).all()]
    message = rf"mammography module \(Net\) gives NaN for {len(bad)} of 8 cases, the first is case `P{bad[0]}`"
    with pytest.raises(ExportError, match=message) as caught:
        exported(tmp_path, cases, module)
    assert hint in caught.value.hint


def broken() -> nn.Module:
    module = Net()
    with torch.no_grad():
        assert module.conv.bias is not None
        module.conv.bias[0] = torch.nan
    return module


# What torch's exporter, or an engine, can't have.


def drawn(draw: Callable[[int], Tensor]) -> Tensor:
    """The same in every call of torch's."""
    torch.manual_seed(3)
    return draw(WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forward", "message", "hint"),
    [
        (
            lambda s, p: Net.forward(s, p) * (2 if p.float().mean() > 100 else 1),
            r"can't export the mammography module \(Net\): Could not guard on data-dependent .* at test_modules",
            "torch.where",
        ),
        (lambda s, p: s.linear(s.map(p).flatten(2).median(2).values), "No ONNX function found for .*median", "sort"),
        (
            lambda s, p: torch.cat([Net.forward(s, p[row : row + 1]) for row in range(len(p))]),
            "is exported for 2 cases alone",
            "no Python loop",
        ),
        (lambda s, p: Net.forward(s, p) + drawn(torch.randn), r"draws random numbers \(RandomNormal\w*", "a buffer"),
        (lambda s, p: Net.forward(s, p) + drawn(torch.rand), r"draws random numbers \(RandomUniform\w*", "a buffer"),
        (
            lambda s, p: Net.forward(s, p) * (2 if p.shape[0] > 5 else 1),
            "is exported for 1 to 5 cases alone",
            "no `if`",
        ),
    ],
)
def test_torchs_own_reason(forward: Forward, message: str, hint: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        graph_of(net(forward))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert hint in caught.value.hint
    assert capfd.readouterr() == ("", ""), "an error is two lines, and nothing beside them"


def spectrum(self: Net, pixels: Tensor) -> Any:
    """OpenVINO 2026.4.1 can't convert it; ONNX Runtime runs it."""
    return self.linear(torch.fft.rfft2(pixels.float() / 255).abs()[:, 0, :6, :6].mean(2))


@pytest.mark.slow
def test_a_default_target_that_can_not_load_the_model_is_left_out(tmp_path: Path, cases: Data) -> None:
    other, _ = phantom_pixels(8, seed=5, preprocessing=PREPROCESSING)
    wanted = Wanted(calibration=Data(other, None, "others"), limits=Limits(flips=1))
    bundle = exported(tmp_path, cases, net(spectrum), wanted=wanted)
    assert bundle.targets == ("onnxruntime:fp32",)
    reports: dict[str, Any] = bundle.entry["precision"]
    assert {report["passed"] for report in reports.values()} == {False}
    reason = reports["openvino:fp32"]["reason"]
    assert "openvino:fp32 can't have this model: OpenVINO can't load" in reason
    assert "Incompatible MatMul" in reason
    assert "0 tensors to quantize" in reports["openvino:int8"]["reason"]


@pytest.mark.slow
def test_a_target_asked_for_that_can_not_load_the_model_is_an_error(tmp_path: Path, cases: Data) -> None:
    with pytest.raises(UnfitTarget, match="openvino:fp32 can't have this model") as caught:
        exported(tmp_path, cases, net(spectrum), wanted=Wanted((Target("openvino", "fp32"),)))
    assert "leave the target out" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def of_type(kind: torch.dtype) -> nn.Module:
    def forward(self: Net, pixels: Tensor) -> Tensor:
        out: Tensor = self.linear(torch.relu(self.conv(pixels.to(kind) / 255)).mean((2, 3)))
        return out.float()

    return net(forward).to(kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error"), [("float16", ParityError), ("bfloat16", UnfitTarget), ("double", UnfitTarget)]
)
def test_modules_that_compute_in_another_type_say_so(
    kind: str, error: type[Exception], tmp_path: Path, cases: Data
) -> None:
    with pytest.raises(error) as caught:
        exported(tmp_path, cases, of_type(getattr(torch, kind)))
    hint: str = caught.value.hint  # type: ignore[attr-defined]
    assert f"the mammography module computes in {kind}: export it in float32" in hint


@pytest.mark.slow
def test_the_hint_of_another_type_is_that_of_every_fp32_target(tmp_path: Path, cases: Data) -> None:
    """OpenVINO drops the cast to float16; ONNX Runtime rounds."""
    module = net(lambda s, p: s.linear(((s.map(p) + 100).half().float() - 100).mean((2, 3))))
    with pytest.raises(ParityError, match="differs from the original on openvino:fp32") as caught:
        exported(tmp_path, cases, module, wanted=Wanted((Target("openvino", "fp32"),)))
    assert "the mammography module computes in float16: export it in float32" in caught.value.hint
    assert caught.value.hint.endswith("or leave openvino:fp32 out"), "it need not be the type"
