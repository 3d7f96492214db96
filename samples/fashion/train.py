"""Train the dense network of this sample and write `dense.safetensors`.

    apt-get install dataset-fashion-mnist
    python samples/fashion/train.py

It learns from the 58,000 official training images that are not validation; validation is read
after each epoch, test once, after the last. Seeded; but sums of floats depend on the number of
threads and on the CPU, so another machine gives slightly other weights.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from data import Augmented, Batch, InOrder
from make_data import HERE, INSTALLED, divide, read_official
from model import build
from safetensors.torch import save_file
from torch import Tensor, nn

SEED = 0
EPOCHS = 6
BATCH = 64
PEAK_LEARNING_RATE = 0.1
WARM_UP = 0.15  # share of all steps
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4


def tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """NumPy batch -> tensors that share its memory."""
    inputs, targets = batch
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def accuracy(model: nn.Module, split: InOrder) -> float:
    """Share of the split, 0-1, whose largest logit is the class."""
    model.eval()
    right, count = 0, 0
    with torch.no_grad():
        for inputs, targets in map(tensors, split):
            right += int((model(inputs).argmax(1) == targets).sum())
            count += len(targets)
    return right / count


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    """Momentum SGD; convolution and linear weights decay, norms and biases do not."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, PEAK_LEARNING_RATE, momentum=MOMENTUM, nesterov=True)


def train(model: nn.Module, split: Augmented, validation: InOrder, epochs: int) -> None:
    """Train in place with one cycle of the learning rate (linear up, cosine down to 0)."""
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        PEAK_LEARNING_RATE,
        total_steps=epochs * len(split),
        pct_start=WARM_UP,
        cycle_momentum=False,
    )
    start = time.monotonic()
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for inputs, targets in map(tensors, split):
            loss = nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch}/{epochs}: loss {np.mean(losses):.4f}, validation accuracy "
            f"{accuracy(model, validation):.4f}, {time.monotonic() - start:.0f} s",
            flush=True,
        )


def main() -> None:
    """Train, save, and print the test accuracy."""
    parser = argparse.ArgumentParser(description="Train the dense network of the sample.")
    parser.add_argument("--source", type=Path, default=INSTALLED, help="folder of the .gz files")
    parser.add_argument("--out", type=Path, default=HERE / "dense.safetensors")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)

    images, labels = read_official(options.source, "train")
    _, held_out = divide(labels)
    seen = np.setdiff1d(np.arange(len(labels)), held_out)
    # Channels-last convolutions train about 1.5 times faster on a CPU; the weights are the same.
    model = build().to(memory_format=torch.channels_last)
    train(
        model,
        Augmented(images[seen], labels[seen], batch_size=BATCH),
        InOrder(images[held_out], labels[held_out]),
        options.epochs,
    )

    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, options.out)
    test = InOrder(*read_official(options.source, "t10k"))
    print(f"test accuracy {accuracy(model, test):.4f}, weights in {options.out}")


if __name__ == "__main__":
    main()
