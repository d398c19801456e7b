"""Every config key: its type, its meaning, its constraint.

The YAML files under conf/ set the values. Hydra checks names and types while it composes; config/parse.py
checks the constraints, and that the values are compatible.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from config.backends import BACKENDS

CONF = Path(__file__).parents[2] / "conf"


@dataclass(frozen=True)
class Constraint:
    expected: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Constraint:
    return Constraint(f"at least {low:g}", lambda value: value >= low)


def above(low: float) -> Constraint:
    return Constraint(f"above {low:g}", lambda value: value > low)


def one_of(*options: str) -> Constraint:
    return Constraint(f"one of {', '.join(options)}", lambda value: value in options)


def chosen(group: str, *options: str) -> Constraint:
    return Constraint(f"{' or '.join(options)}; {group}=OPTION chooses another", lambda value: value in options)


def ascending(low: float, high: float) -> Constraint:
    return Constraint(
        f"[low, high], in order, above {low:g} and at most {high:g}",
        lambda pair: len(pair) == 2 and low < pair[0] <= pair[1] <= high,
    )


ACTIVATION = one_of("relu", "gelu")
DEVICE = one_of("auto", "cpu", "cuda", "mps")  # auto: CUDA, else MPS, else the CPU
PRECISION = one_of("fp32", "bf16", "fp16")
MONITOR = one_of("val/accuracy", "val/balanced_accuracy", "val/macro_f1", "val/loss")
PROBABILITY = Constraint("a probability, 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = Constraint("at least 0 and below 1", lambda value: 0 <= value < 1)
SHARE = Constraint("a share, above 0 and at most 1", lambda value: 0 < value <= 1)
INNER_SHARE = Constraint("a share, above 0 and below 1", lambda value: 0 < value < 1)
HALF = Constraint("at least 0 and at most 0.5", lambda value: 0 <= value <= 0.5)
BETAS = Constraint(
    "two numbers, at least 0 and below 1", lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
)
# Means and deviations are in units of pixels scaled to 0 … 1.
PIXELS = "for each channel: pixels count as 0 to 1; divide 0 to 255 by 255"
MEAN = Constraint(
    f"a number of 0 to 1 {PIXELS}", lambda values: bool(values) and all(0 <= value <= 1 for value in values)
)
STD = Constraint(
    f"a number above 0 and at most 1 {PIXELS}", lambda values: bool(values) and all(0 < value <= 1 for value in values)
)
RANDOM_POLICY = r"rand-m\d[\d.]*(-(n|p|w|mstd|mmax|inc)\d[\d.]*|-t\w+)*|torchvision-n\d+-m([12]?\d|30)"
RAND_AUGMENT = Constraint(
    "timm's RandAugment, e.g. rand-m9-mstd0.5-inc1, or torchvision's, e.g. torchvision-n2-m12",
    lambda text: bool(re.fullmatch(RANDOM_POLICY, text)),
)
COMPILE_MODE = one_of("auto", "default", "reduce-overhead", "max-autotune")  # the last two capture CUDA graphs
PLAN = Constraint("true, false or json", lambda value: value in ("json", True, False))
AUTO = Constraint("auto, true or false", lambda value: value in ("auto", True, False))
FOLDER_NAME = Constraint(
    "the name of a folder: at most 255 bytes, no '/', no '.' in front",
    lambda name: 0 < len(name.encode()) <= 255 and "/" not in name and name[0] != ".",
)
WANDB_PROJECT = Constraint(
    "1 to 128 characters, none of them / \\ # ? % :", lambda name: bool(re.fullmatch(r"[^/\\#?%:]{1,128}", name))
)
WANDB_TAGS = Constraint("tags of 1 to 64 characters each", lambda tags: all(0 < len(tag) <= 64 for tag in tags))


def key(constraint: Constraint | None, default: Any = MISSING) -> Any:
    """Declare a config key with its constraint; null always satisfies it."""
    metadata = {"constraint": constraint}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Model:
    d_model: int = key(at_least(1))  # channels of every layer ("width")
    depth: int = key(at_least(1))  # number of layers
    patch_size: int = key(at_least(1))  # pixels; must divide the image's height and width
    kernel_size: int = key(at_least(1))  # side of the depthwise kernels, odd or even
    activation: str = key(ACTIVATION, "relu")
    norm: str = key(one_of("batch", "layer", "none"), "batch")
    residual_depthwise: bool = True
    residual_pointwise: bool = False
    pretrained: str | None = None  # weights to start from: a run's folder, a file, or the name of a published model
    backend: str = key(one_of(*BACKENDS), "auto")


@dataclass
class Dropout:
    rate: float = key(BELOW_ONE, 0.0)  # the rate to sweep over; the three keys below take it from here
    blocks: float = key(BELOW_ONE, 0.0)  # rate before every layer
    head: float = key(BELOW_ONE, 0.0)  # rate before the classifier
    stochastic_depth: float = key(BELOW_ONE, 0.0)  # rate of the last layer; grows linearly with depth up to it


@dataclass
class Data:
    name: str = key(one_of("digits", "cifar10", "cifar100", "image_folder"))
    root: str = MISSING  # folder of the images; CIFAR is downloaded to it
    batch_size: int = key(at_least(1), 64)  # images per optimizer step
    val_fraction: float = key(BELOW_ONE, 0.1)  # share of the training images, stratified; 0: no validation
    train_fraction: float = key(SHARE, 1.0)  # share of the other training images to train on, stratified
    split_seed: int = key(at_least(0), 0)  # seed of the splits; `seed` leaves them the same
    pipeline: str = key(one_of("cpu", "device"), "cpu")  # augment images on the CPU, or whole batches on the device
    num_workers: int | None = key(at_least(0), None)  # processes that augment; null: one per spare core
    image_size: int | None = key(at_least(1), None)  # pixels; null: the files' size, or 224 if they differ
    crop_fraction: float = key(SHARE, 1.0)  # share of each side in evaluation's centre crop
    mean: list[float] | None = key(MEAN, None)  # null: measured on the training images
    std: list[float] | None = key(STD, None)
    hflip: float = key(PROBABILITY, 0.5)  # probability of a horizontal flip; 0 where mirroring changes the class
    test_fraction: float = key(INNER_SHARE, 0.2)  # test share of a folder without test images, by split_seed
    sampler: str = key(one_of("shuffled", "balanced"), "shuffled")  # balanced: all classes equally often in an epoch
    skip_unreadable: bool = False  # train without a folder's unreadable images


@dataclass
class Augmentation:
    """Augmentation of training images by timm's transforms; the defaults switch it off."""

    shift: float = key(HALF, 0.0)  # pad each side by this share of the image, then crop at random
    scale: list[float] = key(ascending(0, 1), [1.0, 1.0])  # area of the random resized crop, share of the image
    ratio: list[float] = key(ascending(0, 100), [1.0, 1.0])  # aspect ratio of the random resized crop
    hflip: float = key(PROBABILITY, 0.0)
    vflip: float = key(PROBABILITY, 0.0)
    brightness: float = key(PROBABILITY, 0.0)  # factor drawn from 1 ± this; also of contrast and saturation
    contrast: float = key(PROBABILITY, 0.0)
    saturation: float = key(PROBABILITY, 0.0)
    hue: float = key(HALF, 0.0)  # shift drawn from ± this, in turns of the color wheel
    auto_augment: str | None = key(RAND_AUGMENT, None)
    interpolation: str = key(one_of("bilinear", "bicubic", "random"), "bicubic")  # of resized images
    random_erasing: float = key(PROBABILITY, 0.0)  # probability of a rectangle of noise ("pixel" mode)
    mixup: float = key(at_least(0), 0.0)  # alpha of mixup's Beta distribution, one draw per batch
    cutmix: float = key(at_least(0), 0.0)  # alpha of cutmix's; with both, each batch uses one of them at random


@dataclass
class Optimizer:
    name: str = MISSING  # class in torch.optim, see config/optimizers.py
    lr: float = key(above(0))  # the schedule's highest learning rate
    weight_decay: float = key(at_least(0), 0.0)
    decay_norm_and_bias: bool = False  # apply weight decay to norms and biases, too
    layer_decay: float = key(SHARE, 1.0)  # factor of the learning rate per layer, from the head down
    arguments: dict[str, Any] = field(default_factory=dict)  # further arguments of the class in torch.optim


@dataclass
class Adam(Optimizer):
    name: str = key(chosen("optimizer", "adam", "adamw"))  # adam: an L2 penalty; adamw: decoupled weight decay
    betas: list[float] = key(BETAS, [0.9, 0.999])
    eps: float = key(above(0), 1e-8)


@dataclass
class SGD(Optimizer):
    name: str = key(chosen("optimizer", "sgd"))
    momentum: float = key(BELOW_ONE, 0.9)
    nesterov: bool = True


@dataclass
class Scheduler:
    """The learning rate's schedule over the run, applied at every step."""

    name: str = key(chosen("scheduler", "one_cycle"))


@dataclass
class WarmedUp(Scheduler):
    name: str = key(chosen("scheduler", "constant"))
    warmup_epochs: int = key(at_least(0), 0)  # epochs of linear growth from 0


@dataclass
class Cosine(WarmedUp):
    name: str = key(chosen("scheduler", "cosine"))
    min_lr: float = key(at_least(0), 0.0)  # learning rate at the end


@dataclass
class Step(WarmedUp):
    name: str = key(chosen("scheduler", "step"))
    decay_epochs: float = key(above(0))  # epochs between steps
    decay_rate: float = key(above(0), 0.1)  # factor of each step


@dataclass
class EarlyStopping:
    """Stop once val/loss has not fallen by `min_delta` for `patience` epochs."""

    patience: int | None = key(at_least(1), None)  # null: never
    min_delta: float = key(at_least(0), 0.0)
    start_epoch: int = key(at_least(0), 0)  # first epoch that counts


@dataclass
class Trainer:
    epochs: int = key(at_least(1))
    device: str = key(DEVICE, "auto")
    precision: str = key(PRECISION, "fp32")  # fp16 scales the loss
    channels_last: bool | str = key(AUTO, "auto")  # memory format: true NHWC, false NCHW; auto: NHWC, on a GPU measured
    compile: bool = False  # torch.compile
    compile_mode: str = key(COMPILE_MODE, "auto")  # torch.compile's mode; auto: default, on a GPU measured
    clip_grad_norm: float | None = key(above(0), None)  # highest norm of all gradients together; null: no clipping
    sync_batch_norm: bool = False  # take BatchNorm's statistics over all GPUs of the run
    checkpoint_activations: bool = False  # recompute layers in the backward pass: less memory, a third more time
    accumulation_steps: int = key(at_least(1), 1)  # micro-batches per step, to fit a batch in memory
    label_smoothing: float = key(BELOW_ONE, 0.0)
    freeze: str = key(one_of("none", "all_but_head", "depthwise", "pointwise", "patch_emb"), "none")  # frozen weights
    ema_decay: float | None = key(BELOW_ONE, None)  # average the weights over steps, and evaluate the average
    figures: bool = True  # draw the trained model for the run's folder and W&B, in a second or two
    monitor: str = key(MONITOR, "val/accuracy")  # metric that selects the best epoch
    class_weights: str = key(one_of("none", "balanced"), "none")  # weights of the classes in the training loss
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)


@dataclass
class Checkpoint:
    """The schedule of checkpoints to resume from; one is always written at the end and on an interruption."""

    epochs: int | None = key(at_least(1), 1)  # epochs between checkpoints; null: only by minutes
    minutes: float | None = key(above(0), 10.0)  # minutes between checkpoints within an epoch; null: only by epochs
    max_share: float = key(SHARE, 0.005)  # highest share of the time spent on checkpoints by epochs
    keep: str = key(one_of("best", "all"), "best")  # checkpoints kept after completion; best: best.pt alone


@dataclass
class Wandb:
    mode: str | None = key(one_of("offline", "online", "disabled"), None)  # null: W&B's own switches, else offline
    project: str = key(WANDB_PROJECT, "convmixer")
    entity: str | None = None
    tags: list[str] = key(WANDB_TAGS, [])  # []: the tags of WANDB_TAGS


@dataclass
class Study:
    """An experiment's question and published values, for the comparison; they do not affect a run."""

    name: str | None = None  # conf/experiment/NAME.yaml
    question: str | None = None
    source: str | None = None  # source of the published values
    metric: str = key(one_of("val/accuracy", "test/accuracy"), "test/accuracy")  # metric of the published values
    where: dict[str, Any] = field(default_factory=dict)  # matching config, {key: value}; empty: the experiment's
    reference: list[dict[str, Any]] = field(default_factory=list)  # published values, {where: {key: value}, value: …}


@dataclass
class Config:
    model: Model = field(default_factory=Model)
    dropout: Dropout = field(default_factory=Dropout)
    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimizer: Optimizer = field(default_factory=Optimizer)
    scheduler: Scheduler = field(default_factory=Scheduler)
    trainer: Trainer = field(default_factory=Trainer)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    wandb: Wandb = field(default_factory=Wandb)
    study: Study = field(default_factory=Study)
    seed: int = key(at_least(0), 0)
    plan: bool | str = key(PLAN, False)  # list the runs and train none: true as a table, or json
    on_failure: str = key(one_of("continue", "stop"), "continue")  # reaction of a sweep to a failed run
    output_dir: str = "outputs"
    sweep: str = key(FOLDER_NAME)  # folder in output_dir and group in W&B
    varied: list[str] = field(default_factory=list)  # keys that vary in the sweep, set by it; runs are named by them
    notes: str | None = None  # a remark for readers of summary.json, W&B and comparisons
    trial: str | None = None  # STUDY/NUMBER in the sweep's search.db, set by a search with a pruner


# Keys that do not affect a run's result: its paths, its logging, its hardware.
NOT_IDENTITY = (
    "data.root", "data.num_workers", "model.backend", "trainer.device", "trainer.figures",
    "trainer.checkpoint_activations", "checkpoint", "wandb",
    "study", "plan", "on_failure", "output_dir", "sweep", "varied", "notes", "trial",
)  # fmt: skip

# Keys ignored when published values are matched: seeds, speed, precision, and defaults of other keys.
NOT_RECIPE = (
    *NOT_IDENTITY, "seed", "data.split_seed", "data.pipeline", "trainer.precision", "trainer.channels_last",
    "trainer.compile", "trainer.compile_mode", "trainer.sync_batch_norm", "trainer.accumulation_steps",
    "data.hflip", "dropout.rate",
)  # fmt: skip

# Keys added after the first runs were hashed: a default value is not part of a run's ID.
LATER_KEYS = (
    "trainer.compile_mode", "model.pretrained", "trainer.freeze", "optimizer.layer_decay", "data.skip_unreadable",
    "data.test_fraction", "data.sampler", "trainer.class_weights", "optimizer.arguments",
)  # fmt: skip

GROUPS = (
    "model", "patch", "kernel", "dropout", "data", "augmentation", "optimizer", "scheduler", "hardware", "experiment",
    "variant",
)  # fmt: skip
OPTIMIZERS = {"adam": Adam, "sgd": SGD}
SCHEDULERS = {"cosine": Cosine, "step": Step, "warmed_up": WarmedUp, "plain": Scheduler}


def register() -> None:
    """Register the classes with Hydra; the defaults lists under conf/ refer to them."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name, node in {**OPTIMIZERS, **SCHEDULERS}.items():
        store.store(name=f"schema_{name}", node=node)


def keys_of(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Constraint | None]]:
    """Yield every key below a section as (full name, value, constraint)."""
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from keys_of(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value, item.metadata.get("constraint")


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """List the values of a nested config, as read from YAML, as ("section.key", value) pairs."""
    if not isinstance(tree, dict):
        return [(prefix, tree)]
    return [
        pair for name, below in tree.items() for pair in flatten(below, f"{prefix}.{name}" if prefix else str(name))
    ]


def is_below(key: str, sections: Iterable[str]) -> bool:
    """Return True if a key is one of the sections or below one."""
    return any(key == section or key.startswith(section + ".") for section in sections)
