"""The user's own class back: attributes traced, solved for, accepted only with equal outputs."""

from __future__ import annotations

import copy
import functools
import sys
import types

import pytest
import timm
import torch
import torchvision
from returned_class import changed, returned
from small_nets import Net, conv, image, net, noise, param, randomised, require_equal
from torch import nn
from torch.nn.utils import parametrizations
from zoo_models import lively

import edgeprune
from edgeprune.errors import UsageError
from edgeprune.surgery.tagged import Known, Log, Place, Tagged, evaluate
from edgeprune.surgery.user_layers import describe_truly


class Attention(nn.Module):
    """Attention as people write it: fused qkv, sizes from attributes, a scale from __init__."""

    def __init__(self, width: int = 16, heads: int = 4, dim: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim
        self.scale = dim**-0.5
        self.qkv = nn.Linear(width, 3 * heads * dim)
        self.proj = nn.Linear(heads * dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        mixed = (weights @ v).transpose(1, 2)
        return self.proj(mixed.reshape(batch, tokens, self.num_heads * self.head_dim))


def test_sizes_that_forward_reads_from_tensors_need_no_change() -> None:
    """A net whose forward takes its sizes from tensors gets shrunk tensors and true reprs."""
    model = net(
        lambda m, x: m.c(m.n(m.a(x)).flatten(1)),
        a=conv(3, 8),
        n=nn.BatchNorm2d(8),
        c=nn.Linear(8 * 36, 5),
    )

    result = returned(model, image())

    assert changed(result) == {
        "a.out_channels": (8, 4),
        "n.num_features": (8, 4),
        "c.in_features": (288, 144),
    }
    assert "Conv2d(3, 4" in repr(result.module)
    assert "in_features=144" in repr(result.module)


def test_heads_follow_and_the_head_dim_and_the_scale_stay() -> None:
    """4 heads become 2; the product num_heads * head_dim is solved for, the scale is dense."""
    model = net(lambda m, x: m.attn(x), attn=Attention())

    result = returned(model, noise(2, 5, 16))

    assert changed(result)["attn.num_heads"] == (4, 2)
    assert "attn.head_dim" not in changed(result)
    assert result.module.attn.scale == model.attn.scale


def test_a_narrower_head_dim_keeps_the_dense_scale() -> None:
    """With the heads kept and dims inside heads removed, head_dim changes and scale does not."""
    model = net(lambda m, x: m.attn(x), attn=Attention(heads=1, dim=8))

    result = returned(model, noise(2, 5, 16))

    assert changed(result)["attn.head_dim"] == (8, 4)
    assert result.module.attn.scale == 8**-0.5


def test_groups_of_a_depthwise_convolution_follow() -> None:
    """groups, in_channels and out_channels of a depthwise convolution are its new width."""
    model = net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=conv(8, 8, groups=8), c=conv(8, 4))

    result = returned(model, image())

    assert [changed(result)[f"b.{a}"] for a in ("groups", "in_channels", "out_channels")] == [
        (8, 4)
    ] * 3


def test_the_number_of_groups_of_a_norm_follows_though_no_shape_tells_it() -> None:
    """32 channels in 8 groups at half are 16 in 4; 16 in 8 would run as well, and be wrong."""
    model = net(lambda m, x: m.b(m.n(m.a(x))), a=conv(3, 32), n=nn.GroupNorm(8, 32), b=conv(32, 4))

    result = returned(model, image())

    assert changed(result)["n.num_groups"] == (8, 4)
    assert changed(result)["n.num_channels"] == (32, 16)


def test_sizes_of_a_split_become_unequal_survivors() -> None:
    """A list of sizes follows entry by entry, and is reported as one attribute."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [12, 4]
            self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(12, 5), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            one, two = self.a(x).split(self.parts, -1)
            return self.b(one) + self.c(two)

    result = returned(randomised(Split()), noise(2, 6), allocation="uniform")

    (before, after) = changed(result)["parts"]
    assert before == (12, 4)
    assert after == (
        result.module.b.in_features,
        result.module.c.in_features,
    )


def test_a_slice_by_an_attribute_follows() -> None:
    """x[:, :width] and x[:, width:] read one attribute, which is where the survivors part."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 6
            self.a, self.b, self.c = nn.Linear(4, 16), nn.Linear(6, 5), nn.Linear(10, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.b(x[:, : self.width]) + self.c(x[:, self.width :])

    result = returned(randomised(Halves()), noise(2, 4))

    assert changed(result)["width"] == (6, result.module.b.in_features)


def test_a_norm_without_weights_follows_by_its_shape() -> None:
    """normalized_shape of a LayerNorm without affine is decided by what it normalises."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x))),
        a=nn.Linear(8, 12),
        n=nn.LayerNorm(12, elementwise_affine=False),
        b=nn.Linear(12, 5),
    )

    assert changed(returned(model, noise(4, 8)))["n.normalized_shape"] == ((12,), (6,))


def test_an_lstm_with_smaller_weights_says_so() -> None:
    """input_size and hidden_size are what the weights are, and it runs with them."""
    lstm, small = nn.LSTM(8, 12, num_layers=2), nn.LSTM(4, 6, num_layers=2)
    for name, parameter in small.named_parameters():
        setattr(lstm, name, parameter)

    describe_truly(lstm)

    assert repr(lstm) == repr(small)
    assert torch.equal(lstm(noise(3, 2, 4))[0], small(noise(3, 2, 4))[0])


def test_multihead_attention_loses_heads_and_width_together() -> None:
    """embed_dim and num_heads of nn.MultiheadAttention at half of both; head_dim stays."""
    model = net(
        lambda m, x: m.out(m.attn(m.into(x), m.into(x), m.into(x), need_weights=False)[0]),
        into=nn.Linear(6, 16),
        attn=nn.MultiheadAttention(16, 4, batch_first=True),
        out=nn.Linear(16, 5),
    )

    result = returned(model, noise(2, 5, 6))

    assert changed(result)["attn.num_heads"] == (4, 2)
    assert changed(result)["attn.embed_dim"] == (16, 8)
    assert "attn.head_dim" not in changed(result)


def test_a_check_in_the_code_keeps_its_answer() -> None:
    """An attribute that forward only compares with a size follows that size."""

    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            if x.shape[-1] != self.width:
                raise ValueError("wrong width")
            return self.b(x)

    assert changed(returned(randomised(Checked()), noise(2, 4)))["width"] == (8, 4)


def test_numbers_that_are_compared_and_differ_do_not_follow_each_other() -> None:
    """torch.nn.functional.embedding checks its padding index against the table's rows."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.b = nn.Embedding(20, 16, padding_idx=1), nn.Linear(16, 5)

        def forward(self, i: torch.Tensor) -> torch.Tensor:
            return self.b(self.e(i).tanh())

    result = returned(randomised(Padded()), torch.arange(2, 12).reshape(2, 5))

    assert changed(result) == {"e.embedding_dim": (16, 8), "b.in_features": (16, 8)}
    assert result.module.e.padding_idx == 1


def test_an_attribute_of_a_config_object_is_one_of_its_module() -> None:
    """forward may read self.config.heads: the copy's config changes, the user's does not."""

    class Config:
        def __init__(self) -> None:
            self.heads = 4

    class Configured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 5)
            self.gain = param(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x).view(x.shape[0], self.config.heads, 4) * self.gain
            return self.b(x.flatten(1))

    model = randomised(Configured())

    assert changed(returned(model, noise(2, 4)))["config.heads"] == (4, 2)
    assert model.config.heads == 4


def test_ties_modes_and_requires_grad_are_the_users() -> None:
    """A tied weight stays one tensor, a frozen one frozen, a part in training in training."""
    model = net(
        lambda m, x: m.d(m.c(m.drop(m.b(m.a(x))))),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 8),
        c=nn.Linear(8, 8),
        d=nn.Linear(8, 5),
        drop=nn.Dropout(0.5),
    )
    model.c.weight = model.b.weight
    model.a.weight.requires_grad = False
    model.drop.train()

    small = returned(model, noise(2, 6)).module

    assert small.c.weight is small.b.weight
    assert not small.a.weight.requires_grad
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]


def test_weights_are_those_of_the_pruned_model_as_it_is_now() -> None:
    """After training the returned class computes what the trained graph does, in its own memory."""
    model = net(lambda m, x: m.b(m.a(x).relu()), a=conv(3, 8), b=conv(8, 4))
    pruned = edgeprune.prune(model, (image(),))
    with torch.no_grad():
        for parameter in pruned.model.parameters():
            parameter.mul_(1.5)

    small = edgeprune.to_module(pruned, model).module

    require_equal(small(image()), pruned.model(image()))
    with torch.no_grad():
        small.a.weight.zero_()
    assert pruned.model.a.weight.abs().sum() > 0


def test_a_second_round_starts_from_the_returned_class() -> None:
    """A returned module is pruned and returned again, attributes relative to the first round."""
    model = net(lambda m, x: m.attn(x), attn=Attention(heads=8))
    first = returned(model, noise(2, 5, 16))

    second = returned(first.module, noise(2, 5, 16))

    assert changed(second)["attn.num_heads"] == (4, 2)


def test_the_returned_class_trains() -> None:
    """Loss falls over a few steps of the returned module, BatchNorm in training mode."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x)).relu()), a=conv(3, 8), n=nn.BatchNorm2d(8), b=conv(8, 4)
    )
    small = returned(model, image()).module.train()
    optimiser = torch.optim.SGD(small.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = small(image()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_computed_weight_becomes_a_plain_one(wrap) -> None:
    """weight_norm of the copy is removed, the effective weight is named in `folded`."""
    model = net(lambda m, x: m.b(m.a(x).relu()), a=wrap(conv(3, 8)), b=conv(8, 4))

    result = returned(model, image())

    assert result.folded == ("a.weight",)
    assert type(result.module.a) is nn.Conv2d
    assert hasattr(model.a, "parametrizations")


def test_what_eval_mode_does_not_read_is_named() -> None:
    """An auxiliary head stays as it is, and `unread` says so."""
    model = net(
        lambda m, x: (m.b(m.a(x)), m.aux(x)) if m.training else m.b(m.a(x)),
        a=conv(3, 8),
        b=conv(8, 4),
        aux=conv(3, 2),
    )

    assert returned(model, image()).unread == ("aux.weight", "aux.bias")


def test_a_tensor_that_is_no_buffer_comes_back_shrunk() -> None:
    """A table that `__init__` made and did not register; one that nothing reads stays as it was."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
            self.shift, self.spare = torch.linspace(0, 1, 8), torch.ones(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.b(self.a(x).relu() + self.shift)
            return y

    model = Shifted().eval()
    pruned = edgeprune.prune(model, (noise(2, 6),))
    result = edgeprune.to_module(pruned, model)

    assert result.module.shift.shape == (4,)
    assert not isinstance(result.module.shift, nn.Parameter)
    assert (model.shift.shape, result.module.spare.shape) == ((8,), (8,))
    assert result.unread == ()


def test_a_size_in_the_source_is_refused_with_its_line() -> None:
    """A reshape with its numbers in the code has no attribute to change."""
    model = randomised(
        Net(
            lambda m, x: m.b((m.a(x).view(-1, 4, 4) * m.gain).flatten(1)),
            {"a": nn.Linear(6, 16), "b": nn.Linear(16, 5), "gain": param(4, 1)},
        )
    )
    pruned = edgeprune.prune(model, (noise(2, 6),))

    with pytest.raises(
        edgeprune.ModelNotSupported,
        match=r"test_to_module.py:\d+: expected view\(\) to give \(2, 2, 4\) .*written in it",
    ) as refused:
        edgeprune.to_module(pruned, model)
    assert refused.value.where.startswith("tests/surgery/test_to_module.py:")


def test_one_attribute_that_would_need_two_values_is_refused() -> None:
    """Two layers that share a width attribute but keep different widths have no common value."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 4
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 16)
            self.c = nn.Linear(16, 5)
            self.one, self.two = param(4, 1), param(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = (self.a(x).view(x.shape[0], self.heads, 4) * self.one).flatten(1)
            x = (self.b(x.relu()).view(x.shape[0], self.heads, 4) * self.two).flatten(1)
            return self.c(x)

    model = randomised(Shared())
    pruned = edgeprune.prune(model, (noise(2, 6),), only=("a.*",))

    with pytest.raises(edgeprune.ModelNotSupported, match="heads"):
        edgeprune.to_module(pruned, model)


def test_an_order_of_positions_that_the_class_cannot_have_is_refused() -> None:
    """roll by 3 of 8 positions is no roll by 3 of the 4 that are left."""
    model = net(lambda m, x: m.b(m.a(x).roll(3, 1)), a=conv(3, 8), b=conv(8, 4))
    pruned = edgeprune.prune(model, (image(),), criterion="random")

    with pytest.raises(
        edgeprune.ModelNotSupported, match=r"test_to_module.py:\d+ \(roll\): .*order of positions"
    ):
        edgeprune.to_module(pruned, model)


def test_another_model_is_told() -> None:
    """Other shapes, other weights or a graph in place of the analysed model are user errors."""

    def make(width: int) -> Net:
        return net(lambda m, x: m.b(m.a(x)), a=conv(3, width), b=conv(width, 4))

    model = make(8)
    pruned = edgeprune.prune(model, (image(),))
    other = copy.deepcopy(model)
    other.a.weight.data.neg_()

    with pytest.raises(edgeprune.UsageError, match=r"a.weight: expected shape \(8, 3, 3, 3\)"):
        edgeprune.to_module(pruned, make(10))
    with pytest.raises(edgeprune.UsageError, match="other outputs"):
        edgeprune.to_module(pruned, other)
    with pytest.raises(edgeprune.UsageError, match="got a graph"):
        edgeprune.to_module(pruned, pruned.model)
    with pytest.raises(edgeprune.UsageError, match="at a: expected a module of this name"):
        edgeprune.to_module(pruned, nn.Linear(3, 4))


def test_a_tagged_integer_is_the_integer_and_knows_its_expression() -> None:
    """3 * heads * dim + rest // 2 computes as ints do, and again with other values."""
    log = Log()
    heads, dim = Place("attn", "heads"), Place("attn", "dim")
    h, d = Tagged.of(12, heads, log), Tagged.of(64, dim, log)
    size = Tagged.of(100, Known(40), log)

    total = 3 * h * d + (size - 4) // 2 % 50

    assert total == 3 * 12 * 64 + 48
    assert hash(h) == hash(12)
    assert f"{h}" == "12"
    assert type(copy.deepcopy(h)) is int
    assert evaluate(total.expression, {heads: 6, dim: 32}) == 3 * 6 * 32 + 18
    assert -h == -12
    assert [0] * h == [0] * 12
    assert h * 0.5 == 6.0
    assert [c.were_equal for c in log.comparisons] == [True, True]


NETWORKS = ("densenet121", "mobilenet_v3_small", "resnet18", "vit_b_16")


@pytest.mark.first
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_torchvision_comes_back_in_its_class(name: str) -> None:
    """Half of the units gone, the class is torchvision's and its repr tells the new widths."""
    options = {"image_size": 32, "num_layers": 2} if name.startswith("vit") else {}
    if name == "densenet121":
        options = {"block_config": (2, 2, 2, 2)}
    builders = {
        "vit_b_16": lambda **k: torchvision.models.VisionTransformer(
            patch_size=16, num_heads=12, hidden_dim=192, mlp_dim=256, **k
        ),
        "densenet121": lambda **k: torchvision.models.DenseNet(**k),
    }
    build = builders.get(name, lambda **k: torchvision.models.get_model(name, weights=None, **k))
    model = lively(build(**options)).eval()

    result = returned(model, noise(2, 3, 32, 32))

    assert result.changes
    assert result.unread == ()


def test_swin_comes_back_where_heads_and_width_go_in_step() -> None:
    """swin computes the head dim as width // heads: with even heads at half of both it fits."""
    model = torchvision.models.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=32,
        depths=[2, 2],
        num_heads=[4, 8],
        window_size=[4, 4],
        num_classes=10,
    )

    result = returned(lively(model).eval(), noise(2, 3, 32, 32))

    assert changed(result)["features.1.0.attn.num_heads"] == (4, 2)


def test_swin_with_three_heads_is_refused_by_name() -> None:
    """2 of 3 heads and half of the width: width // heads is not the head dim any more."""
    model = torchvision.models.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=24,
        depths=[2],
        num_heads=[3],
        window_size=[4, 4],
        num_classes=10,
    )
    model = lively(model).eval()
    pruned = edgeprune.prune(model, (noise(2, 3, 16, 16),))

    named = r"swin_transformer.py:\d+: .*// features.1.0.attn.num_heads"
    with pytest.raises(edgeprune.ModelNotSupported, match=named):
        edgeprune.to_module(pruned, model)


def test_a_vit_of_timm_comes_back() -> None:
    """timm's own Attention keeps head_dim and scale as attributes: only num_heads changes there."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4, num_classes=10
    )

    result = returned(lively(model).eval(), noise(2, 3, 32, 32))

    assert changed(result)["blocks.0.attn.num_heads"] == (4, 2)
    assert "blocks.0.attn.head_dim" not in changed(result)


def test_other_arguments_are_told() -> None:
    """The result of prune() first, the user's model second: swapped, or a graph, is one error."""
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    pruned = edgeprune.prune(model, (noise(2, 8),))

    with pytest.raises(UsageError, match="got Sequential and Pruned"):
        edgeprune.to_module(model, pruned)  # type: ignore[type-var, arg-type]
    with pytest.raises(UsageError, match="Write to_module"):
        edgeprune.to_module(pruned.model, model)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_two_directions_of_one_width_come_back(kind: type[nn.RNNBase]) -> None:
    """The graph takes directions apart; where both keep as many units the layer holds them."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = kind(8, 16, batch_first=True, bidirectional=True)
            self.head = nn.Linear(32, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(self.both(x)[0])
            return found

    result = returned(lively(Reader()).eval(), noise(2, 5, 8))

    assert changed(result)["both.hidden_size"] == (16, 8)


def test_a_bert_of_transformers_comes_back() -> None:
    """Two layers of BERT with a classification head, embedding width, heads and neurons at half."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
    )
    model = lively(transformers.BertForSequenceClassification(config)).eval()
    ids = torch.randint(0, 99, (2, 16), generator=torch.Generator().manual_seed(0))

    result = returned(model, ids)

    assert changed(result)["bert.encoder.layer.0.intermediate.dense.out_features"] == (96, 48)


@functools.lru_cache(64)
def head_sizes(shape: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """What a library remembers for each shape that it was asked for."""
    return *shape[:2], heads, shape[2] // heads


class Apart(nn.Module):
    """A layer without weights that restores itself by __init__ and computes with a derived copy."""

    def __init__(self, **axes: int) -> None:
        super().__init__()
        self.axes = axes
        self._given = tuple(axes.items())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ((_, heads),) = self._given
        return x.view(x.shape[0], heads, x.shape[1] // heads)

    def __getstate__(self) -> dict[str, object]:
        return {"axes": self.axes}

    def __setstate__(self, state: dict[str, dict[str, int]]) -> None:
        self.__init__(**state["axes"])  # type: ignore[misc]


def test_sizes_under_a_cache_are_computed_anew() -> None:
    """functools.lru_cache answers with integers of an earlier call; it keeps none of the trace."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 5)
            self.heads, self.gain = 4, param(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            x = x.view(head_sizes(tuple(x.shape), self.heads)) * self.gain
            return self.b(x.flatten(2))

    head_sizes.cache_clear()
    model = randomised(Cached())

    assert changed(returned(model, noise(2, 3, 4)))["heads"] == (4, 2)
    assert type(head_sizes((2, 3, 16), 4)[2]) is int
    assert head_sizes.cache_info().currsize > 0


def test_a_layer_that_restores_itself_keeps_its_number_when_copied() -> None:
    """The number in its state changes, and what forward reads follows: a copy gives the same."""
    model = net(
        lambda m, x: m.b((m.apart(m.a(x)) * m.gain).flatten(1)),
        a=nn.Linear(4, 16),
        apart=Apart(heads=4),
        gain=param(4, 1),
        b=nn.Linear(16, 5),
    )

    result = returned(model, noise(2, 4))

    assert changed(result)["apart.axes.heads"] == (4, 2)
    assert copy.deepcopy(result.module).apart._given == (("heads", 2),)


@functools.lru_cache
def steps(n: int) -> int:
    """A recursion that only its cache makes short."""
    return n if n < 2 else (steps(n - 1) + steps(n - 2)) % 7


@functools.lru_cache
def drawn(n: int) -> torch.Tensor:
    """A table that is the same only because it is remembered."""
    return torch.randn(n)


def test_caches_that_must_answer_as_before_do() -> None:
    """A recursion stays short; what is remembered for its identity stays the same."""
    model = net(
        lambda m, x: m.b(m.a(x).relu()) * (1.0 + steps(m.deep)) + drawn(m.wide),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 4),
        deep=60,
        wide=4,
    )

    assert returned(model, noise(3, 6))
    assert type(steps) is type(drawn) is functools._lru_cache_wrapper


def test_cached_functions_come_back_past_a_module_that_refuses() -> None:
    """A module of somebody's that forbids setting attributes stands in nobody's way."""

    class Closed(types.ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError("read only")

    closed = Closed("closed_to_all")
    vars(closed)["known"] = held = functools.lru_cache(abs)
    sys.modules["closed_to_all"] = closed
    try:
        returned(net(lambda m, x: m.b(m.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 4)), noise(3, 6))
    finally:
        del sys.modules["closed_to_all"]

    assert closed.known is held
    assert type(steps) is functools._lru_cache_wrapper


class Config(dict):
    """A dict whose numbers are attributes too."""


class Careful(nn.Module):
    """A layer whose state is its own dict, cleared before it is filled, with a layer inside."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x.view(x.shape[0], self.heads, 4))

    def __getstate__(self) -> dict[str, object]:
        return {"heads": self.heads}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def test_a_layer_that_restores_itself_keeps_its_mode() -> None:
    """__init__ makes everything inside in training mode; the trace is in eval mode."""
    model = net(
        lambda m, x: m.b((m.apart(m.a(x)) * m.gain).flatten(1)),
        a=nn.Linear(4, 16),
        apart=Careful(),
        gain=param(4, 1),
        b=nn.Linear(16, 5),
    )

    result = returned(model.eval(), noise(2, 4))

    assert changed(result)["apart.heads"] == (4, 2)
    assert not any(module.training for module in result.module.modules())


@pytest.mark.parametrize("held", [{0: 64, 1: 128}, {(1, 2): 3}, {"ids": list(range(30000))}])
def test_dicts_that_hold_no_sizes_are_left_alone(held: dict[object, object]) -> None:
    """Keys that are no names, and data of any length."""
    model = net(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 4), held=held)

    assert returned(model, noise(3, 6)).module.held == held


def test_attributes_of_a_dict_of_the_users_class_follow() -> None:
    """`config.heads` of a class of dicts is an attribute like any other."""
    config = Config()
    config.heads = 4
    model = net(
        lambda m, x: m.b((m.a(x).view(-1, m.config.heads, 4) * m.gain).flatten(1)),
        a=nn.Linear(6, 16),
        gain=param(4, 1),
        b=nn.Linear(16, 4),
        config=config,
    )

    assert changed(returned(model, noise(3, 6)))["config.heads"] == (4, 2)


def test_values_inside_of_vmap_have_no_numbers_to_be_known_by() -> None:
    """A model that maps over samples comes back; what is inside of the map is not looked at."""
    model = net(
        lambda m, x: m.b(m.a(x).relu()) + torch.func.vmap(lambda r: r.sum() * torch.ones(4))(x),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 4),
    )

    assert changed(returned(model, noise(3, 6)))["b.in_features"] == (8, 4)
