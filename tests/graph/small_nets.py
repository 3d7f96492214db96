"""Nets of one line and the oracle they are judged by.

The oracle is the user's own eager model: hooks mask what each reader hears, by what the plan keeps
of that reader's input dim. It shares no code with the captured graph, the labels or the silencer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from recurrent_oracle import silenced_forward
from torch import nn

from edgeprune.planning.plan import KeptAxis, Plan
from edgeprune.surgery.prune import Pruned, prune

torch.set_num_threads(1)

M = TypeVar("M", bound=nn.Module)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Net(nn.Module):
    """`net(lambda m, x: m.b(m.a(x)), a=..., b=...)`: layers by name, forward as a function."""

    def __init__(self, run: Callable[..., object], layers: dict[str, object]) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            if isinstance(layer, torch.Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.run(self, *args, **kwargs)


def net(run: Callable[..., object], **layers: object) -> Net:
    """A net in eval mode whose every parameter and statistic has distinct random values."""
    return randomised(Net(run, layers)).eval()


def randomised(model: M, seed: int = 0) -> M:
    """Unit gain in matrices, distinct values in vectors and BatchNorm statistics (in place)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.data = noise * (1.5 / max(parameter[0].numel(), 1)) ** 0.5
        else:
            parameter.data += 0.3 * noise
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.data = 0.2 * torch.randn(buffer.shape, generator=generator)
        if name.endswith("running_var"):
            buffer.data = 0.5 + torch.rand(buffer.shape, generator=generator)
    return model


def between(move: Callable[..., torch.Tensor], made: int = 8, read: int = 8) -> Net:
    """Convolution `a` from 3 to `made` channels, then `move`, then `b` from `read` to 4."""
    return net(lambda m, x: m.b(move(m.a(x))), a=conv(3, made), b=conv(read, 4))


def between_features(move: Callable[..., torch.Tensor], made: int = 8, read: int = 8) -> Net:
    """Linear `a` from 8 to `made` features, then `move`, then `b` from `read` to 5."""
    return net(lambda m, x: m.b(move(m.a(x))), a=nn.Linear(8, made), b=nn.Linear(read, 5))


def conv(into: int, out: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, **options)


def param(*shape: int) -> nn.Parameter:
    """A bare parameter."""
    return nn.Parameter(torch.zeros(shape))


def image(batch: int = 2, channels: int = 3, size: int = 6, seed: int = 5) -> torch.Tensor:
    """(batch, channels, size, size), standard normal."""
    return noise(batch, channels, size, size, seed=seed)


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    """Standard normal of any shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pruned_like_silenced(model: nn.Module, *args: torch.Tensor, **options: object) -> Pruned:
    """Prune at random; the shrunk model must equal the eager model with silenced readers.

    Compared on other inputs than the proof uses and, where the batch is dynamic, on a batch of 1
    and of 3. Also: something went, and the proof holds.
    """
    pruned = prune(model, args, **{"criterion": "random", **options})
    assert pruned.plan.axes
    assert pruned.proof.outcome in ("proved", "weak"), pruned.proof.why
    batches = (1, 3) if pruned.analysis.captured.dynamic_batch else (args[0].shape[0],)
    for batch in batches:
        fresh = tuple(_other(arg, batch) for arg in args)
        with eager_silence(model, pruned.plan), torch.no_grad():
            expected = model(*fresh)
        with torch.no_grad():
            got = pruned.model(*fresh)
        require_equal(got, expected)
    return pruned


def require_equal(got: object, expected: object, tolerance: float = 1e-4) -> None:
    """max |a - b| / std(b) of every output, none of which may be constant."""
    ours = torch.utils._pytree.tree_leaves(got)
    theirs = torch.utils._pytree.tree_leaves(expected)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if not isinstance(b, torch.Tensor):
            assert a == b
            continue
        assert a.shape == b.shape
        assert b.std() > 1e-6
        assert ((a - b).abs().max() / b.std()).item() <= tolerance


def _other(arg: torch.Tensor, batch: int) -> torch.Tensor:
    repeated = torch.cat([arg] * (-(-batch // arg.shape[0])))[:batch]
    if not arg.is_floating_point():
        return repeated.flip(0)
    return torch.randn(repeated.shape, generator=torch.Generator().manual_seed(99 + batch))


@contextlib.contextmanager
def eager_silence(model: nn.Module, plan: Plan) -> Iterator[None]:
    """While it lasts, every layer with a weight hears only what `plan` keeps of its input."""
    names = dict(model.named_parameters(remove_duplicate=False))
    axes = {(axis.parameter, axis.dim): axis for axis in plan.axes}
    # A tied weight stands in the plan under one of its names.
    tied = {
        (id(names[axis.parameter]), axis.dim): axis for axis in plan.axes if axis.parameter in names
    }
    hooks = []
    replaced = []
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            module.forward = silenced_forward(module, path, axes)
            replaced.append(module)
        dims = _reads(module)
        if dims is None:
            continue
        found = axes.get((f"{path}.weight", dims[0])) or tied.get((id(module.weight), dims[0]))
        if found is not None:
            hooks.append(_silence(module, found, dims[1]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in replaced:
            del module.forward


def _reads(module: nn.Module) -> tuple[int, int] | None:
    """The weight's dim that is contracted with the input, and the input's dim, from the end."""
    if isinstance(module, nn.Linear):
        return 1, -1
    if isinstance(module, _CONVOLUTIONS):
        return 1, 1 - module.weight.dim()
    if isinstance(module, _TRANSPOSED):
        return 0, 1 - module.weight.dim()
    if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        return 0, -1
    return None


def _silence(module: nn.Module, axis: KeptAxis, dim: int) -> torch.utils.hooks.RemovableHandle:
    mask = torch.zeros(axis.size)
    mask[list(axis.keep)] = 1.0

    def mask_input(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        # A grouped convolution has one group's inputs in its weight: the same in every group.
        heard = mask.repeat(inputs[0].shape[dim] // axis.size)
        return (inputs[0] * heard.reshape(-1, *[1] * (-1 - dim)), *inputs[1:])

    def normalise(
        norm: nn.LayerNorm, inputs: tuple[torch.Tensor, ...], _: torch.Tensor
    ) -> torch.Tensor:
        kept = torch.tensor(axis.keep)
        x = inputs[0][..., kept]
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
        result = torch.zeros_like(inputs[0])
        result[..., kept] = (x - mean) / (variance + norm.eps).sqrt() * norm.weight[kept]
        if norm.bias is not None:
            result[..., kept] += norm.bias[kept]
        return result

    if isinstance(module, nn.LayerNorm):
        return module.register_forward_hook(normalise)
    return module.register_forward_pre_hook(mask_input)
