"""One layer of a run's model, for measuring backends: its error compared with float64, and its time."""

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

TOLERANCE = 0.03  # relative error; one wrong tap of a 9×9 kernel makes 0.11
CLASSES = 10
GRADIENT = 64.0  # scale of the logits' gradient, with which no gradient vanishes or overflows in fp16
CHECKED_BYTES = 2**30  # memory for the check in float64, which takes 80 bytes for each value of a layer
CUDA_GRAPHS = "reduce-overhead"  # torch.compile's mode with CUDA graphs


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
        shape: Shape of a rank's largest micro-batch of images.
        passes: Number of forward and backward passes of the run.
    """

    config: Config
    shape: Shape
    device: torch.device
    passes: float = math.inf

    @property
    def key(self) -> str:
        """Everything that affects the layer's time, except device and software."""
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
        """Make input and kernels of the depthwise convolution as expanded tensors, which take no memory."""
        model, value = self.config.model, torch.empty(1, device=self.device)
        kernels = value.expand(model.d_model, 1, model.kernel_size, model.kernel_size)
        return value.expand(self.grid), nn.Parameter(kernels)

    def unsupported_reason(self, backend: Backend) -> str | None:
        """Explain why the device does not support the backend for this layer; None if it does."""
        return depthwise.unsupported_reason(backend.name, *self.operands())

    @property
    def distinct_images(self) -> int:
        """Number of different images in a batch, which the check in float64 uses: 8 to 32, or the batch size.

        Copies of them fill the batch, so that the batch has the statistics of its distinct images.
        """
        batch, *grid = self.grid
        most = min(batch, max(8, min(32, CHECKED_BYTES // (80 * math.prod(grid)))))
        return next((n for n in range(most, 7, -1) if batch % n == 0), most)

    @property
    def checked_images(self) -> int:
        """Batch size of the check: the run's if it is a multiple of the distinct images, otherwise their number."""
        batch, distinct = self.shape[0], self.distinct_images
        return distinct if batch % distinct else batch

    def step(self, backend: Backend, images: int, dtype: torch.dtype = torch.float32) -> Step:
        """Make a function that computes logits and weight gradients, with the same numbers at each call."""
        config, distinct = self.without_chance(backend), self.distinct_images
        with preserve_rng_state():
            torch.random.default_generator.manual_seed(0)
            model = make_model(config, self.shape[1], CLASSES)
            for norm in model.modules():
                if isinstance(norm, nn.BatchNorm2d):  # initial ones and zeros would hide errors
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
        network = wrap(model, config, World())
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
        """Compute the largest relative error, by norm, of logits and gradients. In bf16, ReLU's kink makes it large.

        Args:
            exact: Logits and gradients of the distinct images in float64.
        """
        logits, *gradients = (tensor.detach() for tensor in step())
        copies = len(logits) / len(exact[0])
        computed = [*logits.split(len(exact[0])), *(gradient / copies**0.5 for gradient in gradients)]
        pairs = zip(computed, [*[exact[0]] * int(copies), *exact[1:]], strict=True)
        return float(torch.stack([(tensor.double() - true).norm() / true.norm() for tensor, true in pairs]).max())

    def in_float64(self) -> list[Tensor]:
        """Compute logits and gradients of the distinct images with the reference in float64."""
        trainer = replace(self.config.trainer, compile=False, precision="fp32")
        layer = replace(self, config=replace(self.config, trainer=trainer))
        return [tensor.detach() for tensor in layer.step(REFERENCE, self.distinct_images, torch.float64)()]

    def without_chance(self, backend: Backend) -> Config:
        """Make the backend's config without dropout, whose numbers differ by backend, and without max-autotune."""
        config = backend.applied_to(self.config)
        trainer = config.trainer
        if trainer.compile_mode == "max-autotune":
            trainer = replace(trainer, compile_mode=CUDA_GRAPHS)
        return replace(config, model=replace(config.model, depth=1), dropout=schema.Dropout(), trainer=trainer)

    @property
    def eager(self) -> "Layer":
        return replace(self, config=replace(self.config, trainer=replace(self.config.trainer, compile=False)))
