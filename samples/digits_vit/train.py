"""Train the dense network of this sample and write `dense.safetensors`.

    python samples/digits_vit/train.py

It learns from the 997 committed training images; validation is read every ten epochs, test once,
after the last. Seeded, on one thread; another CPU may give slightly other weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from data import HERE, Batch, load
from model import build
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeprune.recipe.data import Split

SEED = 0
EPOCHS = 80
PEAK_LEARNING_RATE = 3e-3
WARM_UP = 0.15  # share of all steps
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0


def tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    """NumPy batch -> tensors that share its memory."""
    inputs, targets = batch
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of the split, 0-1, whose largest logit is the digit."""
    model.eval()
    right, count = 0, 0
    with torch.no_grad():
        for inputs, targets in map(tensors, split):
            right += int((model(inputs).argmax(1) == targets).sum())
            count += len(targets)
    return right / count


def train(model: nn.Module, split: Split, validation: Split, epochs: int) -> None:
    """Train in place with AdamW and one cycle of the learning rate (linear up, cosine to 0)."""
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=epochs * len(split), pct_start=WARM_UP
    )
    for epoch in range(1, epochs + 1):
        model.train()
        for inputs, targets in map(tensors, split):
            loss = nn.functional.cross_entropy(model(inputs), targets, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
        if epoch % 10 == 0:
            held_out = accuracy(model, validation)
            print(f"epoch {epoch}/{epochs}: loss {loss:.4f}, validation accuracy {held_out:.4f}")


def main() -> None:
    """Train, save, and print the test accuracy."""
    parser = argparse.ArgumentParser(description="Train the dense network of the sample.")
    parser.add_argument("--out", type=Path, default=HERE / "dense.safetensors")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)

    data, model = load(), build()
    train(model, data.train, data.validation, options.epochs)
    save_file(model.state_dict(), options.out)
    print(f"test accuracy {accuracy(model, data.test):.4f}, weights in {options.out}")


if __name__ == "__main__":
    main()
