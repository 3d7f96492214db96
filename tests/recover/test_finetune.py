"""Fine-tuning: what moves, what may not, and for how many steps."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import DataError, UsageError
from edgeprune.recover.finetune import Settings, finetune
from edgeprune.recover.schedule import rate_share, step_count

FASHION = Path(__file__).parents[2] / "samples" / "fashion" / "validation.npz"


class Split:
    """Ten batches of eight samples, that count how often they were given."""

    def __init__(self, batches=10, samples=8, labelled=True):
        rng = np.random.default_rng(0)
        self.inputs = rng.normal(size=(batches, samples, 6)).astype(np.float32)
        self.targets = (self.inputs.sum(axis=2) > 0).astype(np.int64)
        self.labelled = labelled
        self.given = 0

    def __len__(self):
        return len(self.inputs)

    def __iter__(self):
        for x, y in zip(self.inputs, self.targets, strict=True):
            self.given += 1
            yield x, (y if self.labelled else None)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.2)
        self.b = nn.Linear(8, 2)

    def forward(self, x):
        return self.b(self.drop(self.norm(self.a(x)).relu()))


def _net(seed=0):
    torch.manual_seed(seed)
    return Net().eval()


def _state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


class Steps:
    def __init__(self):
        self.seen = []

    def step(self, done, total, text):
        self.seen.append((done, total))


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0.5, 5), (1.0, 10), (2.3, 23), (0.01, 1), (0.25, 3)]
)
def test_a_fraction_of_an_epoch_is_that_fraction_of_the_batches(epochs, steps):
    """Steps are the nearest integer to epochs times batches, and never 0."""
    split, seen = Split(), Steps()

    recovery = finetune(_net(), None, split, Settings(epochs=epochs, distillation=0), None, seen)

    assert recovery.steps == split.given == steps
    assert seen.seen == [(i + 1, steps) for i in range(steps)]


def test_zero_epochs_change_nothing():
    """No training: bit-identical weights, no loss to report."""
    net = _net()
    before = _state(net)

    recovery = finetune(net, None, Split(), Settings(epochs=0))

    assert recovery.first_loss is None
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_split_without_length_is_counted_by_reading_it():
    """A generator class without __len__ trains for the same number of steps."""

    class Unsized:
        def __iter__(self):
            return iter(Split(batches=4))

    assert step_count(Unsized(), 1.5) == 6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_parameters_stay_bit_identical_while_the_others_move(optimizer):
    """requires_grad=False is honoured, weight decay included."""
    net = _net()
    net.a.weight.requires_grad_(False)
    before = _state(net)

    finetune(net, _net(1), Split(), Settings(optimizer=optimizer, weight_decay=0.1))

    assert torch.equal(net.a.weight, before["a.weight"])
    assert not torch.equal(net.b.weight, before["b.weight"])


def test_batch_statistics_move_and_the_model_ends_in_eval_mode():
    """Training uses batch statistics; afterwards every module is in eval mode."""
    net = _net()
    before = _state(net)

    finetune(net, _net(1), Split(), Settings())

    assert not torch.equal(net.norm.running_mean, before["norm.running_mean"])
    assert not any(module.training for module in net.modules())


def test_the_teacher_is_not_changed():
    """Weights, statistics and gradients of the teacher are as before."""
    teacher = _net(1)
    before = _state(teacher)

    finetune(_net(), teacher, Split(), Settings())

    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    """Dropout draws from the seed: equal seeds agree bit for bit, another seed differs."""
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    weights = []
    for seed in (3, 3, 4):
        net = _net_without_reseeding()
        finetune(net, None, Split(), Settings(seed=seed, distillation=0))
        weights.append(net.b.weight.detach().clone())

    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.rand(1), expected_draw)


def _net_without_reseeding():
    with torch.random.fork_rng():
        return _net()


def test_training_has_the_threads_it_is_given_and_torch_its_own_again():
    """Inside the loss torch has the settings' number, afterwards the one from before."""
    before, seen = torch.get_num_threads(), []

    def loss(outputs, target):
        seen.append(torch.get_num_threads())
        return nn.functional.cross_entropy(outputs, target)

    finetune(_net(), _net(), Split(batches=2), Settings(threads=before + 1), loss)

    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before


def test_weight_decay_spares_norms_and_biases():
    """With a loss of 0 everywhere, only tensors of two or more dims shrink (towards 0)."""
    net = _net()
    before = _state(net)

    finetune(
        net,
        None,
        Split(),
        Settings(optimizer="sgd", weight_decay=0.5, distillation=0, learning_rate=0.1),
        loss=lambda outputs, target: outputs.sum() * 0.0,
    )

    assert net.a.weight.norm() < before["a.weight"].norm() * 0.99
    for name in ("a.bias", "b.bias", "norm.weight", "norm.bias"):
        assert torch.equal(net.state_dict()[name], before[name]), name


def test_one_clipped_step_moves_by_the_learning_rate_times_the_clip_norm():
    """Plain SGD's first Nesterov step with a huge gradient: |Δ| = lr · clip · (1 + momentum)."""
    net = nn.Linear(6, 2, bias=False)
    before = net.weight.detach().clone()

    finetune(
        net,
        None,
        Split(batches=1),
        Settings(optimizer="sgd", learning_rate=0.1, clip_norm=0.5, weight_decay=0, distillation=0),
        loss=lambda outputs, target: outputs.sum() * 1e4,
    )

    moved = float((net.weight.detach() - before).norm())
    assert moved == pytest.approx(0.1 * 0.5 * 1.9, rel=1e-4)


def test_learning_rate_rises_for_a_tenth_and_falls_along_half_a_cosine():
    """20 steps: 1/3, 2/3, then 1 at step 2 and (1 + cos(π(s - 2)/18)) / 2, never 0."""
    got = [rate_share(step, 20) for step in range(20)]

    expected = [1 / 3, 2 / 3] + [(1 + math.cos(math.pi * s / 18)) / 2 for s in range(18)]
    assert got == pytest.approx(expected)
    assert min(got) > 0
    assert rate_share(0, 1) == 1.0


def test_unlabelled_batches_bring_the_student_to_the_teacher():
    """With target None the distance to the teacher is what falls."""
    teacher, student = _net(1), _net(0)
    probe = torch.tensor(Split().inputs.reshape(-1, 6))
    distance = _gap(student, teacher, probe)

    recovery = finetune(
        student, teacher, Split(labelled=False), Settings(epochs=30, learning_rate=0.02)
    )

    assert _gap(student, teacher, probe) < distance / 2
    assert recovery.last_loss < recovery.first_loss


def _gap(student, teacher, probe):
    with torch.no_grad():
        return float((student(probe).softmax(1) - teacher(probe).softmax(1)).abs().mean())


def test_no_label_and_no_teacher_is_refused():
    """There is nothing to learn from; the message says which key to set."""
    with pytest.raises(DataError, match=r"neither.*distillation above 0"):
        finetune(_net(), None, Split(labelled=False), Settings())


def test_a_loss_that_is_not_finite_stops_with_step_and_key():
    """The step is named and the model is left in eval mode."""
    net = _net()

    with pytest.raises(UsageError, match=r"step 1 of 10: expected a finite loss, got nan.*rate"):
        finetune(net, None, Split(), Settings(distillation=0), lambda o, t: o.sum() * math.nan)

    assert not net.training


def test_a_gradient_that_is_not_finite_never_reaches_the_weights():
    """sqrt at 0 has an infinite slope: refused before the step, weights as they were."""
    net = _net()
    before = net.b.weight.detach().clone()

    with pytest.raises(UsageError, match="finite gradient"):
        finetune(
            net, None, Split(), Settings(distillation=0), lambda o, t: (o * 0).sum().abs().sqrt()
        )

    assert torch.equal(net.b.weight, before)


@pytest.mark.parametrize("number", [0, 2])
def test_a_bad_batch_is_named_by_split_and_number(number):
    """NaN among the inputs, labels out of range, uneven or ragged: which batch it is is said."""
    x, y = np.eye(4, 6, dtype=np.float32), np.array([0, 1, 0, 1])
    for batch, words in (
        ((x * np.nan, y), "reading the train split, batch {}, at its inputs: expected finite"),
        ((x, y + 1), r"cross-entropy at the train split, batch {}: .* from 1 to 2 .* Mend the lab"),
        ((x, y[:3]), r"cross-entropy at the train split, batch {}: .* \(3,\) .* Mend the labels"),
        ((x, [[0], [1, 0]]), "reading the train split, batch {}, at a list: expected"),
        ((x, None), "fine-tuning at the train split, batch {}: expected a label"),
    ):
        split = [*[(x, y)] * number, batch, (x, y)]
        with pytest.raises(DataError, match=words.format(number)) as caught:
            finetune(_net(), None, split, Settings(distillation=0))
        assert caught.value.exit_code == 2


def test_an_empty_split_is_refused():
    """No batch at all: the message says what to give."""
    with pytest.raises(DataError, match="at least one batch, got none"):
        finetune(_net(), None, [], Settings())


def test_batches_of_one_sample_are_passed_over():
    """One sample has no variance; a split of only such batches is refused, a mixed one trains."""
    net = _net()
    one = (np.zeros((1, 6), np.float32), np.zeros(1, np.int64))
    two = (np.eye(2, 6, dtype=np.float32), np.array([0, 1]))

    finetune(net, None, [one, two, one], Settings(epochs=2, distillation=0))

    assert all(torch.isfinite(v).all() for v in net.state_dict().values())
    with pytest.raises(DataError, match="at least 2 samples"):
        finetune(net, None, [one], Settings(distillation=0))


@pytest.mark.parametrize("key", ["epochs", "learning_rate", "temperature", "clip_norm", "threads"])
def test_settings_outside_their_range_name_the_key(key):
    """A negative value is refused when the settings are made."""
    with pytest.raises(UsageError, match=rf"at {key}: expected .*, got -1"):
        Settings(**{key: -1})


class Images(nn.Module):
    """A net of convolutions; `view` runs only where feature maps are contiguous."""

    def __init__(self, viewed):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.viewed = viewed
        self.layouts = []

    def forward(self, x):
        y = self.b(self.a(x).relu())
        self.layouts.append(y.is_contiguous(memory_format=torch.channels_last))
        return y.view(len(y), 64).unflatten(1, (4, 16)).mean(2) if self.viewed else y.mean((2, 3))


def _images(viewed):
    rng = np.random.default_rng(0)
    batches = [(rng.normal(size=(8, 3, 8, 8)).astype(np.float32), np.arange(8) % 4)] * 5
    torch.manual_seed(0)
    net = Images(viewed)
    recovery = finetune(net, copy.deepcopy(net), batches, Settings(epochs=4))
    return net, recovery


def test_convolutions_train_channels_last_and_end_contiguous():
    """The faster layout is used inside and leaves no trace outside, in the teacher neither."""
    net, recovery = _images(viewed=False)

    assert all(net.layouts)
    assert all(p.is_contiguous() for p in net.parameters())
    assert recovery.last_loss < recovery.first_loss


def test_a_model_that_views_feature_maps_trains_in_its_own_layout():
    """Where channels-last cannot run, training goes on as before, to the same result."""
    net, recovery = _images(viewed=True)
    twin, _ = _images(viewed=False)

    assert net.layouts[0] is True
    assert not any(net.layouts[1:])
    assert recovery.last_loss < recovery.first_loss
    torch.testing.assert_close(net.a.weight, twin.a.weight, rtol=1e-4, atol=1e-5)


def test_a_model_with_dict_inputs_and_tuple_outputs_is_distilled_by_matching():
    """Keyword inputs and two outputs: the matching error to the teacher falls."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 4)

        def forward(self, x, scale):
            return self.a(x) * scale, self.b(x)

    torch.manual_seed(0)
    student, teacher = Pair(), Pair()
    scale = np.full((8, 1), 2.0, np.float32)
    batches = [({"x": x, "scale": scale}, None) for x in Split().inputs]

    recovery = finetune(student, teacher, batches, Settings(epochs=20, learning_rate=0.1))

    assert recovery.last_loss < recovery.first_loss / 5


def _fashion():
    """2,000 committed images of 8x8 (each pixel the mean of 3x3), and their labels."""
    with np.load(FASHION) as file:
        images, labels = file["images"][:, 2:26, 2:26], file["labels"].astype(np.int64)
    return images.reshape(-1, 8, 3, 8, 3).mean(axis=(2, 4)).astype(np.float32) / 255, labels


def test_a_classifier_with_most_of_its_units_cut_recovers_on_real_images():
    """Fashion-MNIST: one and a half epochs with the teacher win back most of what was lost."""
    images, labels = _fashion()
    train, test = slice(0, 1536), slice(1536, None)
    batches = list(
        zip(images[train].reshape(48, 32, 64), labels[train].reshape(48, 32), strict=True)
    )
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    finetune(dense, None, batches, Settings(epochs=6, distillation=0))
    cut = copy.deepcopy(dense)
    with torch.no_grad():
        cut[3].weight[:, 8:] = 0

    def accuracy(net):
        with torch.no_grad():
            guess = net(torch.tensor(images[test].reshape(-1, 64))).argmax(1).numpy()
        return float((guess == labels[test]).mean())

    lost = accuracy(cut)
    recovery = finetune(cut, dense, batches, Settings(epochs=1.5))

    assert accuracy(dense) > 0.75
    assert lost < accuracy(dense) - 0.15
    assert accuracy(cut) - lost > (accuracy(dense) - lost) / 2
    assert recovery.last_loss < recovery.first_loss
