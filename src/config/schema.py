"""Every config key: its type, its meaning, its constraint.

The YAML files under conf/ choose the values; these classes declare what may be chosen. Hydra checks
names and types while it composes; config/check.py checks the constraints and what must fit together.
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
# Of pixels that are 0 … 1; files in 0 … 255 are read so, too.
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
    """A config key with its constraint; null always passes."""
    metadata = {"constraint": constraint}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Model:
    d_model: int = key(at_least(1))  # channels of every layer ("width")
    depth: int = key(at_least(1))  # number of layers
    patch_size: int = key(at_least(1))  # pixels; must divide the image's sides
    kernel_size: int = key(at_least(1))  # of the depthwise convolution, odd or even
    activation: str = key(ACTIVATION, "relu")
    norm: str = key(one_of("batch", "layer", "none"), "batch")
    residual_depthwise: bool = True
    residual_pointwise: bool = False
    pretrained: str | None = None  # weights to start from: a run's folder, a file, or the name of a published model
    backend: str = key(one_of(*BACKENDS), "auto")


@dataclass
class Dropout:
    rate: float = key(BELOW_ONE, 0.0)  # the one number to sweep; the places below refer to it
    blocks: float = key(BELOW_ONE, 0.0)  # before every layer
    head: float = key(BELOW_ONE, 0.0)  # before the classifier
    stochastic_depth: float = key(BELOW_ONE, 0.0)  # of the last layer; in proportion to depth before it


@dataclass
class Data:
    name: str = key(one_of("digits", "cifar10", "cifar100", "image_folder"))
    root: str = MISSING  # where the images are, or are downloaded to
    batch_size: int = key(at_least(1), 64)  # images per optimizer step
    val_fraction: float = key(BELOW_ONE, 0.1)  # of the training images, stratified; 0: no validation
    train_fraction: float = key(SHARE, 1.0)  # of what is left, stratified: to train on less
    split_seed: int = key(at_least(0), 0)  # apart from `seed`: a sweep validates on the same images
    pipeline: str = key(one_of("cpu", "device"), "cpu")  # augments images on the CPU, or whole batches on the device
    num_workers: int | None = key(at_least(0), None)  # processes that augment; null: one per spare core
    image_size: int | None = key(at_least(1), None)  # pixels; null: the images' own, or 224 if they differ
    crop_fraction: float = key(SHARE, 1.0)  # evaluation takes this much of each side, from the middle
    mean: list[float] | None = key(MEAN, None)  # null: measured on training images
    std: list[float] | None = key(STD, None)
    hflip: float = key(PROBABILITY, 0.5)  # how often to mirror; 0 where that makes another class
    test_fraction: float = key(INNER_SHARE, 0.2)  # of a folder without test images, stratified by split_seed
    sampler: str = key(one_of("shuffled", "balanced"), "shuffled")  # balanced: each class as often in an epoch
    skip_unreadable: bool = False  # train without the images of a folder that cannot be read


@dataclass
class Augmentation:
    """What happens to training images; timm carries it out. Off where not set."""

    shift: float = key(HALF, 0.0)  # pad each side by this share of the image, crop back at random
    scale: list[float] = key(ascending(0, 1), [1.0, 1.0])  # random resized crop: share of the area
    ratio: list[float] = key(ascending(0, 100), [1.0, 1.0])  # and its aspect ratio
    hflip: float = key(PROBABILITY, 0.0)
    vflip: float = key(PROBABILITY, 0.0)
    brightness: float = key(PROBABILITY, 0.0)  # a factor drawn from 1 ± this
    contrast: float = key(PROBABILITY, 0.0)
    saturation: float = key(PROBABILITY, 0.0)
    hue: float = key(HALF, 0.0)  # a shift drawn from ± this, in turns of the color wheel
    auto_augment: str | None = key(RAND_AUGMENT, None)
    interpolation: str = key(one_of("bilinear", "bicubic", "random"), "bicubic")  # of resized images
    random_erasing: float = key(PROBABILITY, 0.0)  # a rectangle filled with noise ("pixel" mode)
    mixup: float = key(at_least(0), 0.0)  # alpha of the Beta distribution of shares; batches are mixed
    cutmix: float = key(at_least(0), 0.0)  # likewise; with both, each batch takes one of them at random


@dataclass
class Optimizer:
    name: str = MISSING  # of any optimizer of torch.optim: config/optimizers.py
    lr: float = key(above(0))  # the schedule's highest
    weight_decay: float = key(at_least(0), 0.0)
    decay_norm_and_bias: bool = False  # weight decay for norms and biases, too
    layer_decay: float = key(SHARE, 1.0)  # of the learning rate, from the head down, by this factor for each layer
    arguments: dict[str, Any] = field(default_factory=dict)  # further ones of the class in torch.optim


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
    """The learning rate over the run, set at every step."""

    name: str = key(chosen("scheduler", "one_cycle"))


@dataclass
class WarmedUp(Scheduler):
    name: str = key(chosen("scheduler", "constant"))
    warmup_epochs: int = key(at_least(0), 0)  # linear, from 0


@dataclass
class Cosine(WarmedUp):
    name: str = key(chosen("scheduler", "cosine"))
    min_lr: float = key(at_least(0), 0.0)  # at the end


@dataclass
class Step(WarmedUp):
    name: str = key(chosen("scheduler", "step"))
    decay_epochs: float = key(above(0))  # from one step to the next
    decay_rate: float = key(above(0), 0.1)  # the factor of each


@dataclass
class EarlyStopping:
    """Stop once val/loss has not fallen by `min_delta` for `patience` epochs."""

    patience: int | None = key(at_least(1), None)  # null: never
    min_delta: float = key(at_least(0), 0.0)
    start_epoch: int = key(at_least(0), 0)  # epochs before it do not count


@dataclass
class Trainer:
    epochs: int = key(at_least(1))
    device: str = key(DEVICE, "auto")
    precision: str = key(PRECISION, "fp32")  # fp16 scales the loss
    channels_last: bool | str = key(AUTO, "auto")  # memory format: true NHWC, false NCHW; auto: NHWC, on a GPU measured
    compile: bool = False  # torch.compile
    compile_mode: str = key(COMPILE_MODE, "auto")  # torch.compile's mode; auto: default, on a GPU measured
    clip_grad_norm: float | None = key(above(0), None)  # the norm of all gradients at most this
    sync_batch_norm: bool = False  # one run on several GPUs: statistics over all of them
    checkpoint_activations: bool = False  # recompute layers in the backward pass: less memory, a third more time
    accumulation_steps: int = key(at_least(1), 1)  # parts that a batch is processed in, to fit in memory
    label_smoothing: float = key(BELOW_ONE, 0.0)
    freeze: str = key(one_of("none", "all_but_head", "depthwise", "pointwise", "patch_emb"), "none")  # does not train
    ema_decay: float | None = key(BELOW_ONE, None)  # average the weights over steps; evaluate the average
    figures: bool = True  # of the trained model, in the run's folder and W&B; they take a second or two
    monitor: str = key(MONITOR, "val/accuracy")  # picks the best epoch
    class_weights: str = key(one_of("none", "balanced"), "none")  # of an image in the training loss, by its class
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)


@dataclass
class Checkpoint:
    """When a run's state is written, to resume from; at its end and when it is interrupted it always is."""

    epochs: int | None = key(at_least(1), 1)  # every so many epochs; null: not by epochs
    minutes: float | None = key(above(0), 10.0)  # and so many minutes after the last, within an epoch
    max_share: float = key(SHARE, 0.005)  # but not by epochs where writing would take more of the time than this
    keep: str = key(one_of("best", "all"), "best")  # after completion: best.pt alone, or the states to resume from, too


@dataclass
class Wandb:
    mode: str | None = key(one_of("offline", "online", "disabled"), None)  # null: as W&B's switches say, else offline
    project: str = key(WANDB_PROJECT, "convmixer")
    entity: str | None = None
    tags: list[str] = key(WANDB_TAGS, [])  # []: those of WANDB_TAGS


@dataclass
class Study:
    """What an experiment asks and what others measured: for the comparison, without effect on a run."""

    name: str | None = None  # conf/experiment/NAME.yaml
    question: str | None = None
    source: str | None = None  # of the reference values
    metric: str = key(one_of("val/accuracy", "test/accuracy"), "test/accuracy")  # what they are values of
    where: dict[str, Any] = field(default_factory=dict)  # config key: value of runs beside a reference; else NAME's
    reference: list[dict[str, Any]] = field(default_factory=list)  # {where: {config key: value}, value: fraction}


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
    on_failure: str = key(one_of("continue", "stop"), "continue")  # what a sweep does when a run fails
    output_dir: str = "outputs"
    sweep: str = key(FOLDER_NAME)  # the runs that share a folder in output_dir and a group in W&B
    varied: list[str] = field(default_factory=list)  # keys that vary in the run's sweep, which sets it: they name runs
    notes: str | None = None  # why the run is made: for people, in summary.json, W&B and comparisons
    trial: str | None = None  # STUDY/NUMBER in the sweep's search.db, set by a search whose pruner may stop the run


# Keys that a run's result does not depend on: where it reads and writes, how it is shown, what runs it.
NOT_IDENTITY = (
    "data.root", "data.num_workers", "model.backend", "trainer.device", "trainer.figures",
    "trainer.checkpoint_activations", "checkpoint", "wandb",
    "study", "plan", "on_failure", "output_dir", "sweep", "varied", "notes", "trial",
)  # fmt: skip

# Keys that are ignored when published values are matched: chance, speed, precision, what acts through other keys.
NOT_RECIPE = (
    *NOT_IDENTITY, "seed", "data.split_seed", "data.pipeline", "trainer.precision", "trainer.channels_last",
    "trainer.compile", "trainer.compile_mode", "trainer.sync_batch_norm", "trainer.accumulation_steps",
    "data.hflip", "dropout.rate",
)  # fmt: skip

# Keys that came after runs had been hashed without them: at their default they are no part of a run's ID.
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
    """Make the classes known to Hydra; the defaults lists under conf/ refer to them."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for name, node in {**OPTIMIZERS, **SCHEDULERS}.items():
        store.store(name=f"schema_{name}", node=node)


def keys_of(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Constraint | None]]:
    """Every key below a section, as (full name, value, constraint)."""
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from keys_of(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value, item.metadata.get("constraint")


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """A nested config, as YAML holds it, as ("section.key", value) pairs."""
    if not isinstance(tree, dict):
        return [(prefix, tree)]
    return [
        pair for name, below in tree.items() for pair in flatten(below, f"{prefix}.{name}" if prefix else str(name))
    ]


def is_below(key: str, sections: Iterable[str]) -> bool:
    """Whether a key is one of the sections or below one."""
    return any(key == section or key.startswith(section + ".") for section in sections)
