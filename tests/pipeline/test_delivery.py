"""What is written beside the model: torch's own answers on the user's inputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgeprune.exporting.onnx import export
from edgeprune.gates.parity import read_parity
from edgeprune.graph.capture import capture
from edgeprune.pipeline.delivery import PARITY, PARITY_SAMPLES, deliver, parity_record
from edgeprune.pipeline.progress import Silent

STREAM = """

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        for inputs, _ in Split("calibration", 3, 64):
            yield from torch.from_numpy(inputs)

def streamed():
    loader = torch.utils.data.DataLoader(
        Stream(), batch_size=1, collate_fn=lambda rows: (torch.stack(rows), None)
    )
    data = load()
    return edgeprune.Data(
        train=data.train, validation=data.validation, test=data.test, calibration=loader
    )
"""


class Two(nn.Module):
    """A positional input and one by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x, *, shift):
        return self.linear(x) + shift


def test_parity_is_recorded_over_as_many_batches_as_it_takes(tmp_path):
    """40 batches of one sample: the first 32 samples, each with its own answer by torch."""
    torch.manual_seed(0)
    model = Two().eval()
    captured = capture(model, (torch.randn(2, 5),), {"shift": torch.randn(2, 3)})
    artifact = export(captured.module, tmp_path / "two.onnx", captured.args, captured.kwargs)
    x, shift = torch.randn(40, 5), torch.randn(40, 3)
    split = [({"x": x[i : i + 1], "shift": shift[i : i + 1]}, None) for i in range(40)]

    record = parity_record(captured, artifact, split)

    assert {name: len(array) for name, array in record.inputs.items()} == {"x": 32, "shift": 32}
    with torch.no_grad():
        expected = model(x[:32], shift=shift[:32]).numpy()
    np.testing.assert_allclose(record.outputs["output"], expected, rtol=1e-5, atol=1e-6)


def test_calibration_may_be_a_loader_that_does_not_know_its_length(task, prepared, rounds_of):
    """Repair and the parity record read it, not the training split or validation in its place."""
    recipe = task(
        {
            "data.py:load": "data.py:streamed",
            "samples = 0": "samples = 32",
            "epochs = 1.0": "epochs = 0.0",
            "drop = 0.05\nbudget": "drop = 1.0\nbudget",
        }
    )
    folder = recipe.parent
    text = (folder / "data.py").read_text()
    (folder / "data.py").write_text(
        text.replace("import edgeprune", "import edgeprune, torch") + STREAM
    )
    job = prepared(recipe)

    pruning = rounds_of(job)
    (folder / "staging").mkdir()
    deliver(job, pruning, folder / "staging", folder, Silent())

    passes = (folder / "passes.txt").read_text().split()
    assert passes.count("calibration") >= 3  # two repairs and the record
    held = read_parity(folder / "staging" / PARITY).inputs
    first = np.concatenate([inputs for inputs, _ in job.data.calibration])[:PARITY_SAMPLES]
    np.testing.assert_array_equal(next(iter(held.values())), first)
