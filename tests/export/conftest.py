"""What the tests of heads share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import nn

from mpmmu_rt.export.encoders import Encoders
from mpmmu_rt.model.config import AttentionKind, EncoderConfig
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.spec import MODALITIES, Modality
from tests.conftest import once

Graphs = Callable[[AttentionKind], onnx.ModelProto]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """OpenMP's waiting threads take longer than the tiny models of these tests."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def resnet50_graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """The graph of a ResNet-50 of 16 channels at 64 x 64, by its attention; traced once for all workers."""

    def graph(attention: AttentionKind) -> onnx.ModelProto:
        def make(path: Path) -> None:
            torch.manual_seed(0)
            config = EncoderConfig(arch="resnet50", width=16, attention=attention)
            modules: dict[Modality, nn.Module] = {modality: Encoder(config).eval() for modality in MODALITIES}
            traced = Encoders(modules, 64).features_graph("ultrasound")
            path.write_bytes(traced.SerializeToString())

        return onnx.load(str(once(tmp_path_factory, f"resnet50-{attention}.onnx", make)))

    return graph
