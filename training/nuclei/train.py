"""The training loop: seeded, resumable, one thread prepares crops while the other cores compute.

Sample n is drawn from its own generator `(seed, n)`, so a resumed run sees exactly the crops the unbroken run would.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.unet import UNet
from training.nuclei.augment import random_crop
from training.nuclei.data import Picture

BATCH = 8
SIDE = 256  # network pixels of a crop
PEAK_RATE = 2e-3
WARM_UP = 300  # steps
SAVE_EVERY = 250  # steps
AVERAGE = 0.998  # decay of the weight average that is evaluated and kept


def loss_of(planes: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Sum of four losses.

    Args:
        planes: (B, 5, h, w) raw: inside, seam, energy logits, offset dy dx.
        targets: as `training.nuclei.targets.Targets`, batched.
    """
    inside, seam, energy, offset = planes[:, 0], planes[:, 1], planes[:, 2], planes[:, 3:5]
    weight, valid = targets["weight"], (targets["weight"] > 0).float()
    total = valid.sum() + 1.0

    cross = functional.binary_cross_entropy_with_logits(inside, targets["inside"], reduction="none")
    loss = (cross * weight).sum() / total + _dice(inside, targets["inside"], valid)
    cross = functional.binary_cross_entropy_with_logits(seam, targets["seam"], reduction="none")
    loss = loss + 2.0 * (cross * weight).sum() / total + 0.5 * _dice(seam, targets["seam"], valid)
    cross = functional.binary_cross_entropy_with_logits(energy, targets["energy"], reduction="none")
    loss = loss + (cross * weight).sum() / total
    apart = functional.smooth_l1_loss(offset, targets["offset"], beta=0.1, reduction="none").sum(1)
    return loss + (apart * targets["inside"] * weight).sum() / (targets["inside"].sum() + 1.0)


def _dice(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    p = torch.sigmoid(logits) * valid
    t = target * valid
    both, either = (p * t).sum((1, 2)), p.sum((1, 2)) + t.sum((1, 2))
    return (1.0 - (2.0 * both + 50.0) / (either + 50.0)).mean()


def stratum_weights(pictures: list[Picture]) -> np.ndarray:
    """Chance of each picture: a stratum counts by the square root of its network pixels, its pictures by their size."""
    pixels = np.array([p.labels.size * p.scale**2 for p in pictures])
    strata = np.array([p.stratum for p in pictures])
    chance = np.zeros(len(pictures))
    for stratum in np.unique(strata):
        mine = strata == stratum
        chance[mine] = pixels[mine] / math.sqrt(pixels[mine].sum())
    return chance / chance.sum()


def batches(pictures: list[Picture], seed: int, first: int, last: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    chance = stratum_weights(pictures)

    def sample(number: int) -> tuple:
        rng = np.random.default_rng((seed, number))
        return random_crop(pictures[rng.choice(len(pictures), p=chance)], SIDE, rng)

    def batch(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        crops = [sample(step * BATCH + i) for i in range(BATCH)]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in crops]))
        names = ("inside", "seam", "energy", "offset", "weight")
        return pixels, {n: torch.from_numpy(np.stack([getattr(t, n) for _, t in crops])) for n in names}

    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(batch, step) for step in range(first, min(first + 2, last))]
        for step in range(first, last):
            ready = coming.pop(0)
            if step + 2 < last:
                coming.append(pool.submit(batch, step + 2))
            yield ready.result()


def rate_at(step: int, steps: int) -> float:
    """Learning rate: linear warm-up, then a cosine to one hundredth."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(network: UNet, pictures: list[Picture], folder: Path, steps: int, seed: int) -> UNet:
    """Train `network` for `steps`, resuming from `folder/last.pt` when it exists; returns the averaged network."""
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.pt"
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch 2.13 stub lacks it
    average = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=1e-3)
    first = 0
    if last.exists():
        state = torch.load(last, weights_only=True)
        if (state["steps"], state["seed"]) != (steps, seed):
            raise SystemExit(f"{last} belongs to --steps {state['steps']} --seed {state['seed']}; give those or --out")
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        print(f"resuming at step {first} of {steps}", flush=True)
    started, shown = time.monotonic(), 0.0
    for step, (pixels, targets) in enumerate(batches(pictures, seed, first, steps), start=first):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            planes = network.planes(pixels.contiguous(memory_format=torch.channels_last))
        loss = loss_of(planes.float(), targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        _blend(average, network, min(AVERAGE, (step + 1) / (step + 10)))
        shown = float(loss.detach()) if step == first else 0.98 * shown + 0.02 * float(loss.detach())
        done = step + 1
        if done % 50 == 0 or done == steps:
            pace = (time.monotonic() - started) / (done - first)
            left = pace * (steps - done) / 60
            print(f"step {done}/{steps}  loss {shown:.4f}  {pace:.2f} s/step  {left:.0f} min left", flush=True)
        if done % SAVE_EVERY == 0 or done == steps:
            state = {"network": network.state_dict(), "average": average.state_dict()}
            state |= {"optimiser": optimiser.state_dict(), "step": done, "steps": steps, "seed": seed}
            torch.save(state, last.with_suffix(".tmp"))
            last.with_suffix(".tmp").rename(last)
    return average


@torch.no_grad()
def _blend(average: nn.Module, network: nn.Module, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.dtype.is_floating_point:
            kept.lerp_(new, 1.0 - decay)
        else:
            kept.copy_(new)
