"""One layer of a run's model, as the run would compute it: its result compared with float64's, and its time."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from config import schema
from config.schema import Config
from ops import depthwise
from runtime.device import autocast
from runtime.distributed import World
from runtime.rng import preserve_rng_state
from training.model import make_model, memory_format, wrap
from training.optimization import freeze, train_mode

Shape = tuple[int, int, int, int]  # batch, channels, height, width
Step = Callable[[], list[Tensor]]

TOLERANCE = 0.03  # of a relative error; one wrong tap of a 9×9 kernel makes 0.11
CLASSES = 10
GRADIENT = 64.0  # of the logits: in fp16 no gradient vanishes or overflows
CHECKED_BYTES = 2**30  # of the check in float64, in which a value of a layer takes 80
CUDA_GRAPHS = "reduce-overhead"  # the mode of torch.compile


class Backend(NamedTuple):
    """Values of model.backend, trainer.channels_last and, if compiled, trainer.compile_mode."""

    name: str
    channels_last: bool
    compile_mode: str = "default"

    def __str__(self) -> str:
        layout = "NHWC" if self.channels_last else "NCHW"
        return f"{self.name} {layout}" + (" CUDA graphs" if self.compile_mode == CUDA_GRAPHS else "")

    def applied_to(self, config: Config) -> Config:
        trainer = replace(config.trainer, channels_last=self.channels_last, compile_mode=self.compile_mode)
        return replace(config, model=replace(config.model, backend=self.name), trainer=trainer)


REFERENCE = Backend("reference", False)


@dataclass(frozen=True)
class Layer:
    """A layer between a patch embedding and a head, in training.

    Attributes:
        config: the run's.
        shape: of the images that a rank computes at once.
        device: the rank's.
        passes: forward and backward passes of the run.
    """

    config: Config
    shape: Shape
    device: torch.device
    passes: float = math.inf

    @property
    def key(self) -> str:
        """All that its time depends on, except the device and the software."""
        model, trainer = asdict(self.config.model), self.config.trainer
        for name in ("depth", "pretrained", "backend"):
            del model[name]
        run = {"precision": trainer.precision, "compiled": trainer.compile, "freeze": trainer.freeze}
        return json.dumps({"images": self.shape, **model, **run, "recomputed": trainer.checkpoint_activations})

    @property
    def grid(self) -> Shape:
        """The shape of the depthwise convolution's input."""
        (batch, _, height, width), patch = self.shape, self.config.model.patch_size
        return batch, self.config.model.d_model, height // patch, width // patch

    def operands(self) -> tuple[Tensor, Tensor]:
        """Input and kernels of the depthwise convolution, as tensors that take no memory."""
        model, value = self.config.model, torch.empty(1, device=self.device)
        kernels = value.expand(model.d_model, 1, model.kernel_size, model.kernel_size)
        return value.expand(self.grid), nn.Parameter(kernels)

    def unsupported_reason(self, backend: Backend) -> str | None:
        """Say why the device cannot compute the layer with a backend; None if it can."""
        return depthwise.unsupported_reason(backend.name, *self.operands())

    @property
    def distinct_images(self) -> int:
        """Number of different images in a batch, which the check in float64 takes: 8 to 32 if there are as many.

        Copies of them fill the batch. A batch's statistics are then those of its distinct images.
        """
        batch, *grid = self.grid
        most = min(batch, max(8, min(32, CHECKED_BYTES // (80 * math.prod(grid)))))
        return next((n for n in range(most, 7, -1) if batch % n == 0), most)

    @property
    def checked_images(self) -> int:
        """Images of a batch in which every distinct image is equally frequent: the run's batch, or one of each."""
        batch, distinct = self.shape[0], self.distinct_images
        return distinct if batch % distinct else batch

    def step(self, backend: Backend, images: int, dtype: torch.dtype = torch.float32) -> Step:
        """Make a function that computes logits and the gradients of trained weights, the same each time."""
        config, distinct = self.without_chance(backend), self.distinct_images
        with preserve_rng_state():
            torch.random.default_generator.manual_seed(0)
            model = make_model(config, self.shape[1], CLASSES)
            for norm in model.modules():
                if isinstance(norm, nn.BatchNorm2d):  # whose ones and zeros hide mistakes
                    nn.init.uniform_(norm.weight, 0.5, 1.5)
                    nn.init.uniform_(norm.bias, 0.5, 1.5)
            shape = (distinct, *self.shape[1:])
            inputs = torch.randn(shape) + torch.randn(*shape[:2], 1, 1)
            dlogits = GRADIENT * (distinct / images) ** 0.5 * torch.randn(distinct, CLASSES)
        copies = torch.arange(images) % distinct
        inputs = inputs[copies].to(self.device, dtype).to(memory_format=memory_format(config))
        dlogits = dlogits[copies].to(self.device)
        freeze(model, config.trainer.freeze)
        model = model.to(self.device, dtype).to(memory_format=memory_format(config))
        network = wrap(model, config, World(), self.device)
        train_mode(network)
        weights = [weight for weight in model.parameters() if weight.requires_grad]

        def step() -> list[Tensor]:
            if config.trainer.compile:
                torch.compiler.cudagraph_mark_step_begin()
            with autocast(self.device, config.trainer.precision):
                logits = network(inputs)
            return [logits, *torch.autograd.grad(logits, weights, dlogits.to(logits.dtype))]

        return step

    def error(self, step: Step, exact: list[Tensor]) -> float:
        """Compute the largest relative error of a tensor, by its norm; with ReLU's kink it is not small in bf16.

        Args:
            exact: the result of a step of distinct images in float64.
        """
        logits, *gradients = (tensor.detach() for tensor in step())
        copies = len(logits) / len(exact[0])
        found = [*logits.split(len(exact[0])), *(gradient / copies**0.5 for gradient in gradients)]
        pairs = zip(found, [*[exact[0]] * int(copies), *exact[1:]], strict=True)
        return float(torch.stack([(tensor.double() - true).norm() / true.norm() for tensor, true in pairs]).max())

    def in_float64(self) -> list[Tensor]:
        """Compute the result of each distinct image once with the reference in float64."""
        trainer = replace(self.config.trainer, compile=False, precision="fp32")
        layer = replace(self, config=replace(self.config, trainer=trainer))
        return [tensor.detach() for tensor in layer.step(REFERENCE, self.distinct_images, torch.float64)()]

    def without_chance(self, backend: Backend) -> Config:
        """Leave out dropout, whose random numbers differ by backend, and the minutes that max-autotune takes."""
        config = backend.applied_to(self.config)
        trainer = config.trainer
        if trainer.compile_mode == "max-autotune":
            trainer = replace(trainer, compile_mode=CUDA_GRAPHS)
        return replace(config, model=replace(config.model, depth=1), dropout=schema.Dropout(), trainer=trainer)

    @property
    def eager(self) -> "Layer":
        return replace(self, config=replace(self.config, trainer=replace(self.config.trainer, compile=False)))
