"""The authors' short recipe (locuslab/convmixer-cifar10) as a plain PyTorch loop, written from its facts.

The peer that experiment=short_cifar10 is compared with: torchvision's transforms in a plain DataLoader, an
`nn.Sequential` in PyTorch's default layout, AdamW on all parameters, the one-cycle set before every step.

    python plain_loop.py DIR --seeds 0 1 2 --epochs 25                       # DIR/train/CLASS/*, DIR/test/CLASS/*
"""

import argparse
import json
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


class Residual(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x


def plain_convmixer(width: int, depth: int, kernel_size: int, patch_size: int, classes: int) -> nn.Sequential:
    def activated(convolution: nn.Module) -> list[nn.Module]:
        return [convolution, nn.GELU(), nn.BatchNorm2d(width)]

    layers: list[nn.Module] = activated(nn.Conv2d(3, width, patch_size, stride=patch_size))
    for _ in range(depth):
        layers.append(Residual(*activated(nn.Conv2d(width, width, kernel_size, groups=width, padding="same"))))
        layers += activated(nn.Conv2d(width, width, 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def train(args: argparse.Namespace, seed: int) -> dict[str, float]:
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    to_input = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomHorizontalFlip(), transforms.RandAugment(num_ops=2, magnitude=12)]
    training = ImageFolder(f"{args.folder}/train", transforms.Compose([*augment, *to_input]))
    testing = ImageFolder(f"{args.folder}/test", transforms.Compose(to_input))
    loader = DataLoader(training, args.batch_size, shuffle=True, num_workers=args.workers)

    model = plain_convmixer(args.width, args.depth, args.kernel_size, args.patch_size, len(training.classes)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    started = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        for i, (images, labels) in enumerate(loader):
            done = (epoch + (i + 1) / len(loader)) / args.epochs
            optimizer.param_groups[0]["lr"] = np.interp(done, [0, 2 / 5, 4 / 5, 1], [0, args.lr, args.lr / 20, 0])
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started

    model.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in DataLoader(testing, args.batch_size, num_workers=args.workers):
            correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
    return {"seed": seed, "test/accuracy": correct / len(testing), "seconds": seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, default in (
        ("width", 256), ("depth", 8), ("kernel-size", 5), ("patch-size", 2), ("epochs", 25), ("batch-size", 512),
        ("workers", 2), ("lr", 0.05), ("weight-decay", 0.005),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=type(default), default=default)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        print(json.dumps(train(arguments, seed)), flush=True)
