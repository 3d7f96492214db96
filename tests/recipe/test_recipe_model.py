"""Loading a model: factories, torchvision, weights, errors."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import textwrap

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from edgeprune.errors import EnvironmentFailed, UsageError, UserCodeError
from edgeprune.recipe.model import load_model
from edgeprune.recipe.zoo import fill_zero_weights_

FACTORIES = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 3)
            self.b = nn.Linear(3, 2)

        def forward(self, x, scale=None):
            y = self.b(self.a(x))
            return y if scale is None else y * scale

    def build():
        return Net()

    def with_example():
        return Net(), (torch.ones(2, 4),), {"scale": torch.full((1,), 3.0)}

    def with_one_tensor():
        return Net(), torch.ones(2, 4), None

    def number():
        return 3

    class Bad(nn.Module):
        def __init__(self, what):
            super().__init__()
            self.what = what

        def forward(self, x):
            if self.what == "raises":
                raise KeyError("a missing table")
            return {"nan": x / 0 * 0, "none": None}[self.what]

    def raises():
        return Bad("raises")

    def nan():
        return Bad("nan")

    def none():
        return Bad("none")

    def bad_example():
        return Net(), 3, {}

    def broken():
        return Net(1)

    class Nested:
        @staticmethod
        def build():
            return Net()

    constant = 3
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with model.py in it."""
    (tmp_path / "model.py").write_text(textwrap.dedent(FACTORIES))
    return tmp_path


def test_a_module_alone_takes_the_inputs_that_are_described(folder):
    """A factory that returns a module is given example tensors of the described shape."""
    loaded = load_model("model.py:build", input="5x4", base_dir=folder)

    assert loaded.args[0].shape == (5, 4)
    assert loaded.module(*loaded.args).shape == (5, 2)
    assert not loaded.module.training
    assert loaded.name == "Net (model:build)"


def test_an_example_of_the_factory_is_kept(folder):
    """(module, args, kwargs) is handed on as it is, and a single tensor counts as the args."""
    loaded = load_model("model.py:with_example", base_dir=folder)
    single = load_model("model.py:with_one_tensor", base_dir=folder)

    assert torch.equal(loaded.args[0], torch.ones(2, 4))
    assert float(loaded.kwargs["scale"]) == 3.0
    assert torch.equal(single.args[0], torch.ones(2, 4))


def test_a_described_input_wins_over_the_factorys_example(folder):
    """With --input the factory's own example, keywords included, is not used; batch 1 is fine."""
    loaded = load_model("model.py:with_example", input="1x4", base_dir=folder)

    assert loaded.args[0].shape == (1, 4)
    assert loaded.kwargs == {}


def test_random_weights_are_the_same_each_time(folder):
    """Two loads of a factory without weights give equal parameters."""
    one = load_model("model.py:build", input="2x4", base_dir=folder).module
    two = load_model("model.py:Nested.build", input="2x4", base_dir=folder).module

    assert torch.equal(one.a.weight, two.a.weight)


def test_a_module_path_works_as_a_file_does(folder, monkeypatch):
    """package.module:function is imported by name."""
    (folder / "elsewhere_net.py").write_text((folder / "model.py").read_text())
    monkeypatch.syspath_prepend(str(folder))

    assert load_model("elsewhere_net:build", input="2x4").name == "Net (elsewhere_net:build)"


def test_a_factory_may_import_its_neighbour(folder, monkeypatch):
    """A file beside the factory's can be imported by it, as when the file is run."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "neighbour_layers.py").write_text("WIDTH = 7\n")
    (folder / "uses.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    from neighbour_layers import WIDTH\n"
        "    return nn.Linear(4, WIDTH)\n"
    )

    assert load_model("uses.py:build", input="2x4", base_dir=folder).module.out_features == 7


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded_by_key(folder, suffix):
    """Every parameter equals the file's, in both formats."""
    torch.manual_seed(9)
    state = {
        "a.weight": torch.randn(3, 4),
        "a.bias": torch.randn(3),
        "b.weight": torch.randn(2, 3),
        "b.bias": torch.randn(2),
    }
    path = folder / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    module = load_model("model.py:build", weights=path.name, input="2x4", base_dir=folder).module

    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_mismatched_weights_list_every_kind_of_fault(folder):
    """Missing, unexpected and wrongly shaped keys are each listed, long lists shortened."""
    state = {f"extra{i}": torch.zeros(1) for i in range(8)}
    state |= {
        "a.weight": torch.zeros(4, 4),
        "a.bias": torch.zeros(3),
        "b.weight": torch.zeros(2, 3),
    }
    save_file(state, folder / "w.safetensors")

    with pytest.raises(UsageError) as caught:
        load_model("model.py:build", weights="w.safetensors", input="2x4", base_dir=folder)

    message = str(caught.value)
    assert "1 missing: b.bias" in message
    assert "8 unexpected: extra0, extra1, extra2, extra3, extra4 and 3 more" in message
    assert "1 of another shape: a.weight (4, 4) for (3, 4)" in message


def test_a_tied_weight_need_not_be_stored_twice(folder):
    """A key that is the same memory as a stored one may be absent; an untied one may not."""
    (folder / "tied.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))\n"
        "    net[1].weight = net[0].weight\n"
        "    return net\n"
    )
    state = {"0.weight": torch.arange(9.0).reshape(3, 3)}
    save_file(state, folder / "tied.safetensors")
    module = load_model(
        "tied.py:build", weights="tied.safetensors", input="2x3", base_dir=folder
    ).module

    assert torch.equal(module[1].weight, state["0.weight"])


@pytest.mark.parametrize("second", [1.0, 2.0])
def test_two_values_for_a_tied_weight_are_refused(folder, second):
    """Equal copies load; of different ones, the last would win without a word."""
    (folder / "tied.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))\n"
        "    net[1].weight = net[0].weight\n"
        "    return net\n"
    )
    state = {"0.weight": torch.ones(3, 3), "1.weight": torch.full((3, 3), second)}
    torch.save(state, folder / "tied.pt")
    options = {"weights": "tied.pt", "input": "2x3", "base_dir": folder}

    if second == 1.0:
        module = load_model("tied.py:build", **options).module
        assert torch.equal(module[1].weight, torch.ones(3, 3))
        return
    with pytest.raises(UsageError, match=r"got two: 0\.weight and 1\.weight"):
        load_model("tied.py:build", **options)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
    ],
)
def test_a_checkpoint_and_a_wrapper_are_seen_through(folder, wrap):
    """One state dict in a checkpoint, and the prefix of DataParallel or compile, load whole."""
    state = {"a.weight": torch.rand(3, 4), "a.bias": torch.rand(3)}
    state |= {"b.weight": torch.rand(2, 3), "b.bias": torch.rand(2)}
    torch.save(wrap(state), folder / "checkpoint.pt")
    module = load_model(
        "model.py:build", weights="checkpoint.pt", input="2x4", base_dir=folder
    ).module

    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"state_dict": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}, "2 of them: state_"),
        ({"epoch": 3, "lr": 0.1}, "epoch (int), lr (float)"),
        ([torch.zeros(1)], "got list"),
        ({}, "got dict"),
    ],
)
def test_a_checkpoint_of_several_or_no_states_is_not_guessed_at(folder, content, part):
    """Two state dicts, none, or a list: the file says what it holds, and nothing is chosen."""
    torch.save(content, folder / "checkpoint.pt")

    with pytest.raises(UsageError, match="expected a state dict") as caught:
        load_model("model.py:build", weights="checkpoint.pt", input="2x4", base_dir=folder)

    assert part in str(caught.value)


def test_a_prefix_of_some_keys_is_not_dropped(folder):
    """A prefix is a wrapper's only when every key has it; the nearest keys are suggested."""
    state = {"module.a.weight": torch.zeros(3, 4), "a.bias": torch.zeros(3)}
    save_file(state | {"b.weigth": torch.zeros(2, 3)}, folder / "w.safetensors")

    with pytest.raises(UsageError) as caught:
        load_model("model.py:build", weights="w.safetensors", input="2x4", base_dir=folder)

    assert "b.weight (is it 'b.weigth'?)" in str(caught.value)
    assert "2 unexpected: " in str(caught.value)


def test_weights_with_nan_are_refused_by_name(folder):
    """A checkpoint of a training that diverged is named before anything is pruned."""
    state = load_model("model.py:build", input="2x4", base_dir=folder).module.state_dict()
    save_file(state | {"b.bias": torch.tensor([0.0, float("nan")])}, folder / "w.safetensors")

    with pytest.raises(UsageError, match="NaN in 1 of 4 tensors: b.bias"):
        load_model("model.py:build", weights="w.safetensors", input="2x4", base_dir=folder)


def test_a_pickle_that_runs_code_is_refused(folder, capfd):
    """A weights file whose unpickling would call a function is refused, and nothing is called."""

    class Hostile:
        def __reduce__(self):
            return print, ("code from a weights file has run",)

    torch.save({"a.weight": Hostile()}, folder / "hostile.pt")

    with pytest.raises(UsageError, match="expected a state dict of tensors only"):
        load_model("model.py:build", weights="hostile.pt", input="2x4", base_dir=folder)

    assert "has run" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (lambda x: x.to_sparse(), "a.weight (sparse_coo)"),
        (lambda x: x.to("meta"), "a.weight (without values"),
        (lambda x: x.to(torch.complex64), "a.weight (complex, for a real parameter)"),
    ],
)
def test_weights_that_are_not_plain_numbers_are_named(folder, odd, words):
    """Sparse tensors and complex ones are neither our bug nor cut to their real part in silence."""
    state = load_model("model.py:build", input="2x4", base_dir=folder).module.state_dict()
    torch.save(state | {"a.weight": odd(state["a.weight"])}, folder / "odd.pt")

    with pytest.raises(UsageError) as caught:
        load_model("model.py:build", weights="odd.pt", input="2x4", base_dir=folder)

    assert caught.value.exit_code == 2
    assert f"got others in 1 of 4: {words}" in str(caught.value)


class Left:
    """A class that a pickle names; unpickling it is harmless."""


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (lambda path: torch.save({"a": Left()}, path), rf"a pickle that names {__name__}\.Left\. "),
        (
            lambda path: torch.save(torch.nn.Linear(2, 2), path),
            r"names torch\.nn\.\S+Linear\. Save",
        ),
        (lambda path: path.write_bytes(pickle.dumps([1])), r"got a pickle of another kind\. Sav"),
        (lambda path: path.write_bytes(b""), r"got EOFError\. Save them with"),
    ],
)
def test_a_refused_pickle_says_what_it_names_and_gives_no_dangerous_advice(folder, save, words):
    """The refusal never passes on torch's advice to load the file with its code."""
    save(folder / "other.pt")

    with pytest.raises(UsageError, match=words) as caught:
        load_model("model.py:build", weights="other.pt", input="2x4", base_dir=folder)

    assert "weights_only" not in str(caught.value)
    assert "Re-running" not in str(caught.value)


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pt", "gone.pt"])
def test_an_unreadable_weights_file_is_named(folder, name):
    """Junk and absence are reported with the file's path."""
    (folder / "junk.safetensors").write_bytes(b"junk")
    (folder / "junk.pt").write_bytes(b"junk")

    with pytest.raises(UsageError, match=name):
        load_model("model.py:build", weights=name, input="2x4", base_dir=folder)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("model.py:biuld", ["no", "'biuld'", "Did you mean 'build'?"]),
        ("gone.py:build", ["a Python file", "gone.py"]),
        ("model.py", ["path/to/file.py:function"]),
        ("no_such_package_at_all:build", ["a module 'no_such_package_at_all'", "got none"]),
        ("model.py:constant", ["a function", "int"]),
        ("model.py:build", ["an example input", "--input"]),
        ("torchvision:resnet19", ["resnet19", "resnet18"]),
        ("timm:resnet19", ["resnet19", "resnet18"]),
        ("torchvision:fasterrcnn_resnet50_fpn", ["takes a list of images"]),
    ],
)
def test_a_wrong_name_is_explained(folder, spec, parts):
    """Each way to name a model wrongly is a UsageError that says what would be right."""
    with pytest.raises(UsageError) as caught:
        load_model(spec, base_dir=folder)

    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("model.py:number", ["an nn.Module", "got int"]),
        ("model.py:bad_example", ["args tuple", "int"]),
        ("model.py:broken", ["TypeError", "model.py:"]),
        ("model.py:raises", ["a missing table", "model.py:", "to take 2x4", "--input"]),
        ("model.py:none", ["expected a tensor", "got NoneType"]),
    ],
)
def test_user_code_that_fails_is_the_users(folder, spec, parts):
    """What a factory raises or wrongly returns is a UserCodeError that names it."""
    with pytest.raises(UserCodeError) as caught:
        load_model(spec, input="2x4", base_dir=folder)

    assert [part for part in parts if part not in str(caught.value)] == []


def test_the_users_traceback_is_kept(folder):
    """The original error is the cause, and its line in the user's file is in the message."""
    with pytest.raises(UserCodeError) as caught:
        load_model("model.py:broken", input="2x4", base_dir=folder)

    lines = (folder / "model.py").read_text().splitlines()
    assert isinstance(caught.value.__cause__, TypeError)
    assert caught.value.where == f"model.py:{lines.index('    return Net(1)') + 1}"


def test_a_file_that_raises_on_import_is_the_users(folder):
    """An error at the file's top level is reported with its line, and no half module stays."""
    (folder / "raises.py").write_text("x = 1\ny = x / 0\n")
    before = set(sys.modules)

    with pytest.raises(UserCodeError, match="raises.py:2") as caught:
        load_model("raises.py:build", input="2x4", base_dir=folder)

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not any("raises" in name for name in set(sys.modules) - before)


def test_an_input_of_another_shape_is_named_with_the_users_line(folder):
    """A shape that the model does not take ends loading, exit code 2, with both of them said."""
    with pytest.raises(UserCodeError, match=r"to take 2x5, got RuntimeError.*2x5") as caught:
        load_model("model.py:build", input="2x5", base_dir=folder)

    lines = (folder / "model.py").read_text().splitlines()
    place = lines.index("        y = self.b(self.a(x))") + 1
    assert (caught.value.where, caught.value.exit_code) == (f"model.py:{place}", 2)


def test_a_model_that_gives_nan_is_refused(folder):
    """NaN for finite inputs: there is nothing to compare a pruned model with."""
    with pytest.raises(UsageError, match="expected numbers for its example input, got NaN"):
        load_model("model.py:nan", input="2x4", base_dir=folder)


def test_the_trial_run_leaves_the_model_as_it_was(folder):
    """A counter that forward() moves stands where the factory left it."""
    (folder / "counts.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Counts(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        self.calls.add_(1)\n"
        "        return super().forward(x) + x.mul_(1.0).sum()\n"
        "def build():\n"
        "    net = Counts(4, 2)\n"
        "    net.register_buffer('calls', torch.tensor(7))\n"
        "    return net\n"
    )

    assert int(load_model("counts.py:build", input="2x4", base_dir=folder).module.calls) == 7


@pytest.mark.parametrize(
    ("name", "shape"),
    [("squeezenet1_1", (2, 3, 224, 224)), ("lraspp_mobilenet_v3_large", (2, 3, 128, 128))],
)
def test_torchvision_knows_its_inputs(name, shape):
    """A torchvision model comes with an input of the size it was made for, and runs on it."""
    loaded = load_model(f"torchvision:{name}")

    assert loaded.name == name
    assert loaded.args[0].shape == shape
    with torch.no_grad():
        loaded.module(loaded.args[0][:1])


def test_a_torchvision_head_is_not_left_at_zero():
    """The head of a vision transformer starts as zeros, and gets values; nothing else changes."""
    module = torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 8, num_classes=3)
    before = {name: value.clone() for name, value in module.named_parameters()}
    fill_zero_weights_(module)
    changed = [n for n, value in module.named_parameters() if not torch.equal(value, before[n])]

    assert not before["heads.head.weight"].any()
    assert "heads.head.weight" in changed
    assert all(not before[name].any() for name in changed)


def test_timm_knows_its_input_and_is_seeded():
    """A timm model comes with the input of its own configuration, the same weights each time."""
    one, two = (load_model("timm:test_vit") for _ in range(2))

    assert one.args[0].shape == (2, 3, 160, 160)
    assert one.name == "test_vit"
    assert all(torch.equal(a, b) for a, b in zip(one.args, two.args, strict=True))
    states = (loaded.module.state_dict().values() for loaded in (one, two))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("zoo", ["torchvision", "timm"])
def test_a_zoo_that_is_missing_is_an_environment_error(monkeypatch, zoo):
    """Without torchvision or timm the error says how to install it and exits with 5."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(EnvironmentFailed, match=f"pip install {zoo}") as caught:
        load_model(f"{zoo}:resnet18")

    assert caught.value.exit_code == 5
