"""A user's modules before anything is done with them: refused, copied, left as they were.

A copy works on the CPU, in evaluation mode, and keeps nothing of the graph of autograd. What it holds besides tensors
and can't be copied (a lock, an open file, a generator) it shares with the user's module.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from mpmmu_rt.errors import ExportError

from .reasons import one_line

_QUANTIZED = "torch.ao.nn."


def described(module: nn.Module, modality: str) -> str:
    """What messages call a user's module: `the mammography module (Net)`."""
    return f"the {modality} module ({type(module).__name__})"


def require_exportable(module: nn.Module, name: str) -> None:
    """Raise `ExportError` for a module that no copy and no trace can be made of, whatever it computes."""
    if not isinstance(module, nn.Module):
        raise ExportError(
            f"{name} is no torch.nn.Module, expected one from pixels to an embedding",
            hint="wrap the function in a torch.nn.Module whose `forward` calls it",
        )
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    _refuse(
        name,
        [path for path, tensor in tensors.items() if is_lazy(tensor)],
        "has never been called: {} has no shape yet, expected trained weights",
        "call it once on pixels, then load its weights or train it: a first call draws new ones",
    )
    _refuse(
        name,
        [path for path, tensor in tensors.items() if tensor.is_meta],
        "holds no values in {} (device `meta`), expected trained weights",
        'give it memory and weights: `module.to_empty(device="cpu")`, then `module.load_state_dict(...)`',
    )
    parts = dict(module.named_modules())
    _refuse(
        name,
        [path for path, part in parts.items() if isinstance(part, torch.jit.ScriptModule)],
        "is TorchScript ({}), expected the Python module that it was made from",
        "build that module and give it these weights: `module.load_state_dict(scripted.state_dict())`",
    )
    _refuse(
        name,
        [path for path, part in parts.items() if _is_quantized(part)],
        "is quantized already ({}), expected it in float",
        "export the float module; 8 bits are a target: openvino:int8 with calibration images",
    )


def _refuse(name: str, places: Sequence[str], got: str, hint: str) -> None:
    if places:
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        raise ExportError(f"{name} {got.format(f'`{places[0]}`{more}' if places[0] else 'all of it')}", hint=hint)


def _is_quantized(part: nn.Module) -> bool:
    kind = type(part).__module__
    return kind.startswith(_QUANTIZED) and "quantized" in kind and "qat" not in kind


def copied(module: nn.Module, name: str = "the module") -> nn.Module:
    """A copy of `module` on the CPU in evaluation mode. Raises `ExportError` for one that can't be copied."""
    shared: dict[int, Any] = {}
    while True:
        try:
            with _Detached():
                out = copy.deepcopy(module, dict(shared)).cpu()
            break
        # Whatever the classes of the user's attributes raise: no common base.
        except Exception as error:
            found = next((value for part in module.modules() for value in _uncopyable(vars(part), shared)), None)
            if found is None or isinstance(found, Tensor | nn.Module):
                raise ExportError(
                    f"{name} can't be copied ({one_line(error)}), expected one that `copy.deepcopy` takes",
                    hint="build the module anew and give it these weights: `new.load_state_dict(module.state_dict())`",
                ) from error
            shared[id(found)] = found
    # What `torch.export` made can't change its mode: it was chosen when it was made.
    with contextlib.suppress(NotImplementedError):
        out.eval()
    return out


class _Detached(TorchFunctionMode):
    """Copies what was computed, such as a feature map that a module keeps, by its values: `deepcopy` refuses to."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _uncopyable(values: Mapping[Any, Any] | Sequence[Any], shared: Mapping[int, Any]) -> Iterator[Any]:
    """What in there makes `deepcopy` fail: in containers, the single item. Modules are looked at one by one."""
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, nn.Module) or id(value) in shared:
            continue
        try:
            with _Detached():
                copy.deepcopy(value, dict(shared))
        # The same as above; who asks raises.
        except Exception:  # noqa: BLE001
            inner = value if isinstance(value, dict | list | tuple) else ()
            yield next(_uncopyable(inner, shared), None if inner else value)


@contextlib.contextmanager
def resting(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The user's modules in evaluation mode, as they were afterwards: a hook of a copy may still call them."""
    modes = {part: part.training for module in modules for part in module.modules()}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
