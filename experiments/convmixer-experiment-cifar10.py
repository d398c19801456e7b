# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ConvMixer on CIFAR-10, step by step
#
# ConvMixer (["Patches Are All You Need?"](https://arxiv.org/abs/2201.09792)) is a model for images that fits into a
# few lines. It cuts an image into patches, turns every patch into a vector, and then does the same two things again
# and again: mix *across positions*, mix *across channels*. There is no attention and no pyramid: the grid of patches
# has the same size from the first layer to the last.
#
# We load images, build the model from its three parts, train it without and with dropout, look inside, and end with
# what can be concluded and what cannot.
#
# **To run it**, install the repository's `requirements.txt` and open the notebook in Jupyter or VS Code, or run the
# same cells as a script, `python experiments/convmixer-experiment-cifar10.py`. No GPU is needed; on all of CIFAR-10 it
# takes ten to twenty minutes without one. Settings change as anywhere in this repository, through the variable
# `TUTORIAL`: with `TUTORIAL="data=digits trainer.epochs=2"` it takes half a minute.
#
# **The outputs in the repository** are those of `TUTORIAL="data=image_folder data.root=data/cifar10-jpeg
# data.train_fraction=0.1"`: CIFAR-10 re-encoded as JPEG files, and a tenth of the images to learn from. Accuracies on
# them are no accuracies on CIFAR-10. No more than a dozen of the images are shown.

# %%
import os
import sys
import warnings
from pathlib import Path

import rich

if "__file__" in globals():  # the script, from wherever it is started
    os.chdir(Path(__file__).parents[1])
else:  # the notebook, which starts in its own folder
    os.chdir(".." if Path.cwd().name == "experiments" else ".")
    rich.reconfigure(force_jupyter=False, force_terminal=False)  # plain lines instead of progress bars
    warnings.filterwarnings("ignore", message="IProgress not found")
sys.path.insert(0, str(Path("src").absolute()))

# %%
# %config InlineBackend.figure_formats = ["retina"]
# %matplotlib inline
import json
import logging
import math
import shlex
import socket
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
import sklearn.metrics
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from PIL import Image

from config.parse import parse_config
from config.schema import Config, register
from data import datasets
from LLMConvMixer import ConvClassificationHead, ConvMixer, ConvMixerLayer, ConvPatchEmbeddings
from pipeline import transforms
from pipeline.batches import make_eval_loader
from runtime.console import Handler
from runtime.rng import seed_rngs
from tracking import plots
from tracking.identity import run_id
from training.model import make_model
from training.run import run

logging.basicConfig(level=logging.INFO, handlers=[Handler()])
register()

# %% [markdown]
# ## Settings
#
# `conf/` holds a default for everything. We set what makes the model small enough for a CPU: 4 layers of 64 channels
# on patches of 4×4 pixels, as in `experiment=patch_kernel_cifar10`. (The paper's model for CIFAR-10 has 8 layers of 256
# channels on single pixels, some four hundred times the work.)

# %%
settings = {
    "data": "cifar10",
    "data.num_workers": 0,
    "model.d_model": 64,
    "model.depth": 4,
    "patch": "p4",
    "kernel": "k5",
    "trainer.epochs": 10,
    "wandb.mode": "disabled",
    "on_failure": "stop",
    "sweep": "tutorial",
}
asked = shlex.split(os.environ.get("TUTORIAL", ""))
settings |= dict(setting.split("=", 1) for setting in asked)
print("changed by TUTORIAL:", *asked or ["nothing"])


def composed(**more: str) -> Config:
    """Compose the config of `python src/train.py`."""
    with initialize_config_dir(str(Path("conf").absolute()), version_base="1.3"):
        overrides = [f"{key}={value}" for key, value in {**settings, **more}.items()]
        return parse_config(compose("train", overrides))


# %% [markdown]
# ## The images
#
# CIFAR-10 is 60,000 photographs of 32×32 pixels in ten classes; it is downloaded when missing. Where it cannot be had,
# we go on with handwritten digits that come with scikit-learn: 8×8 pixels, so that single pixels make the same 8×8
# grid of patches. Any folder of images does as well: `TUTORIAL="data=image_folder data.root=DIR"`.

# %%
socket.setdefaulttimeout(10)  # seconds to wait for a server that does not answer
config = composed()
try:
    images = datasets.load(config.data, config.model.patch_size)
except datasets.DataError as error:
    print(f"{error}\n\nSo we take the embedded digits instead.\n")
    settings |= {"data": "digits", "patch": "p1"}
    config = composed()
    images = datasets.load(config.data, config.model.patch_size)
socket.setdefaulttimeout(None)

print(f"{config.data.name}: {images.image_size[0]}×{images.image_size[1]} pixels, {images.channels} channels")
for part, use in (("train", "to learn from"), ("val", "to choose by"), ("test", "to look at once, at the end")):
    print(f"{len(getattr(images, part)):7,} {part:5} {use}")

# %% [markdown]
# Validation images are a part of the training images, set aside with the same share of every class. The choice of the
# best epoch and the better model is made on them, so that the test images remain unseen until the end.

# %%
pictures = Path(config.output_dir, config.sweep, "figures")
pictures.mkdir(parents=True, exist_ok=True)


def keep(figure: Figure, name: str) -> Figure:
    """Save a figure beside the runs, and return it for display as the last line of a cell."""
    plots.save_figure(figure, pictures / name)
    return figure


def gallery(shown: Sequence[Image.Image], titles: Sequence[str], columns: int) -> Figure:
    """Draw pictures row by row, each with its title; pictures without a title come last."""
    rows = math.ceil(len(shown) / columns)
    lines = max(title.count("\n") + 1 for title in titles)
    titled = math.ceil(len(titles) / columns)
    height = rows * plots.PAGE / columns + titled * 0.14 * lines
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.PAGE, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)
        for axes in figure.subplots(rows, columns, squeeze=False).flat:
            axes.set_axis_off()
        for axes, picture in zip(figure.axes, shown, strict=False):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        for axes, title in zip(figure.axes, titles, strict=False):
            axes.set_title(title, loc="center", fontsize=7.5, pad=2)
    return figure


examples = [images.train[np.flatnonzero(images.train.labels == label)[0]] for label in range(6)]
keep(gallery(examples, images.classes[:6], columns=6), "images")

# %% [markdown]
# ## Augmentation
#
# A model that sees the same images epoch after epoch begins to know them by heart. Augmentation shows it each one a
# little differently every time. Here (`augmentation=light`) that is a shift by up to an eighth of the side, and a
# mirror image where the class allows: a mirrored cat is a cat, a mirrored 2 is no 2. The first row below is before,
# the others are three draws after augmentation; black is what was beyond the edge.

# %%
augment = transforms.training_transform(config.augmentation, images)
seed_rngs(config.seed, 0, rank=0)  # the same draws whenever the cell is run
augmented = [augment(image) if augment else image for _ in range(3) for image in examples]
keep(gallery(examples + augmented, images.classes[:6], columns=6), "augmentation")

# %% [markdown]
# ## The model, from its three parts
#
# Let us follow a batch through the model. Images come as bytes and are normalized first: every channel has mean 0 and
# standard deviation 1 over the training images.

# %%
cpu = torch.device("cpu")
normalize = transforms.Normalize(images, cpu)
pixels, _ = next(iter(make_eval_loader(images.val, images, config)))
x = normalize(pixels)
print("images    ", list(x.shape))

# %% [markdown]
# **1. The patch embedding** is a convolution whose kernel and stride are the patch size, so that it looks at each
# patch once and makes a vector of it. Activation and BatchNorm follow, as after every convolution here.

# %%
d_model, kernel_size = config.model.d_model, config.model.kernel_size
embedding = ConvPatchEmbeddings(d_model, config.model.patch_size, images.channels)
patches = embedding(x)
print("embeddings", list(patches.shape))

# %% [markdown]
# **2. The layer** mixes twice. A *depthwise* convolution looks at every channel on its own and mixes positions; its
# input is added to its result, so that a layer need only learn what to change. A *pointwise* convolution (1×1) looks
# at every position on its own and mixes channels:
#
# $$z' = \mathrm{BN}(\sigma(\mathrm{Depthwise}(z))) + z \qquad z = \mathrm{BN}(\sigma(\mathrm{Pointwise}(z')))$$
#
# What comes out has the shape of what went in.

# %%
layer = ConvMixerLayer(d_model, kernel_size)
mixed = layer(patches)
print("mixed     ", list(mixed.shape))

# %% [markdown]
# **3. The head** averages over all positions and classifies with one linear layer.

# %%
head = ConvClassificationHead(d_model, len(images.classes))
print("logits    ", list(head(mixed).shape))

# %% [markdown]
# Put together: an embedding, several layers like the one given (each with initial values of its own), a head.

# %%
model = ConvMixer(layer, config.model.depth, embedding, head)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


for name, part in model.named_children():
    print(f"{count(part):8,} {name}")
one = model.conv_mixer_layers[0]
print(f"{count(model):8,} parameters in all")
print(f"\nIn a layer: {count(one.depth_wise_conv):,} to mix positions, {count(one.point_wise_conv):,} to mix channels.")

# %% [markdown]
# ## Training, without and with dropout
#
# The paper's recipe has no dropout. The author of [a Keras
# implementation](https://github.com/matteo-stat/computer-vision-convmixer) wondered about that, and with weak
# augmentation put dropout of 0.15 before every layer and before the classifier. So we train twice, alike in all but
# that.
#
# `run` is what `python src/train.py` calls: it trains, validates after every epoch, keeps the best epoch's weights,
# and records everything in a folder. If you run this cell again, it finds the completed runs and trains nothing.

# %%
configs = {dropout: composed(dropout=dropout) for dropout in ("none", "all")}
print(f"dropout=all: rate {configs['all'].dropout.rate}")

# %%
for dropout, chosen in configs.items():
    run(chosen, [f"dropout={dropout}"])

# %% [markdown]
# ## Did they learn, or learn by heart?
#
# Each run has written a row per epoch to `metrics.csv`. The training loss is measured along the way, on augmented
# images and with dropout at work; the validation loss after each epoch, on plain images and with nothing dropped. So a
# training loss *with* dropout looks worse than the model is. What shows learning by heart is a validation loss that
# stands still, or rises, while the training loss goes on falling.

# %%
sweep = Path(config.output_dir, config.sweep)
folders = {dropout: next(sweep.glob(f"*-{run_id(chosen)}")) for dropout, chosen in configs.items()}
metrics = {dropout: pd.read_csv(folder / "metrics.csv") for dropout, folder in folders.items()}

with matplotlib.rc_context(plots.STYLE):
    figure = Figure(figsize=(plots.PAGE, 2.7), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (dropout, rows) in zip(panels, metrics.items(), strict=True):
        marker = "o" if len(rows) < 3 else None
        axes.plot(rows["epoch"], rows["train/loss"], color=plots.COLORS[0], marker=marker, label="training")
        axes.plot(rows["epoch"], rows["val/loss"], color=plots.COLORS[1], marker=marker, label="validation")
        axes.set(xlabel="epoch", title=f"dropout={dropout}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("loss")
    panels[1].legend()
keep(figure, "loss")

# %%
for dropout, rows in metrics.items():
    last, lowest = rows.iloc[-1], rows.loc[rows["val/loss"].idxmin()]
    print(
        f"dropout={dropout:4}  last epoch: training loss {last['train/loss']:.3f}, validation loss "
        f"{last['val/loss']:.3f}; lowest validation loss {lowest['val/loss']:.3f} after epoch {lowest['epoch']:.0f}"
    )

# %% [markdown]
# ## What did it learn to see?
#
# We take each run's `best.pt`. `make_model` puts the same three parts together from a config; dropout has no
# parameters, and none is dropped once a model is trained. Which of the two we look into, validation accuracy decides.

# %%
models, validated = {}, {}
for dropout, folder in folders.items():
    best = torch.load(folder / "checkpoints" / "best.pt", map_location=cpu, weights_only=True)
    models[dropout] = make_model(configs[dropout], images.channels, len(images.classes)).eval()
    models[dropout].load_state_dict(best["model"])
    validated[dropout] = best["metrics"]["val/accuracy"]
    print(f"dropout={dropout:4}  {validated[dropout]:.2%} of validation images, epoch {best['metrics']['epoch']}")
better = max(validated, key=validated.__getitem__)
print(f"\nWe look into the one with dropout={better}.")

# %% [markdown]
# The patch embedding's filters are what a patch is compared with first. For photographs, expect patches of a color,
# edges, and contrasts between two colors.

# %%
weights = models[better].state_dict()
keep(plots.patch_embedding_filters(weights["patch_emb.conv.weight"]), "patch_embedding_filters")

# %% [markdown]
# A depthwise kernel says how a position's neighbors count: a single red dot in the middle leaves a channel as it
# is, a red half beside a blue half answers to edges, a wide blot takes an average.

# %%
depthwise = [layer.depth_wise_conv.weight.detach() for layer in models[better].conv_mixer_layers]
keep(plots.depthwise_kernels(depthwise), "depthwise_kernels")

# %% [markdown]
# ## The test
#
# Each run ended with a look at the test images and kept one number of it. We take the same look to see more than that.
# Softmax makes probabilities of the logits.


# %%
@torch.no_grad()
def predict(model: torch.nn.Module) -> np.ndarray:
    """Compute the probability of every class, for all test images."""
    batches = make_eval_loader(images.test, images, config)
    return torch.cat([model(normalize(pixels)).softmax(1) for pixels, _ in batches]).numpy()


true = images.test.labels
probabilities = {dropout: predict(model) for dropout, model in models.items()}
right = {dropout: shares.argmax(1) == true for dropout, shares in probabilities.items()}
for dropout, folder in folders.items():
    recorded = json.loads((folder / "summary.json").read_text())["test/accuracy"]
    print(
        f"dropout={dropout:4}  {right[dropout].mean():.2%} of {len(true):,} test images ({recorded:.2%} in the record)"
    )

# %% [markdown]
# Which class is taken for which? Rows are what an image is, columns what the model says.

# %%
predicted = probabilities[better].argmax(1)
counts = sklearn.metrics.confusion_matrix(true, predicted, labels=range(len(images.classes)))
keep(plots.confusion_matrix(counts, images.classes), "confusion_matrix")

# %% [markdown]
# And some single images, drawn at random, with the predicted class and its probability; where that is wrong, the true
# class is below.

# %%
drawn = np.random.default_rng(0).choice(len(true), 6, replace=False)
titles = [
    f"{images.classes[predicted[i]]}: {probabilities[better][i].max():.0%}\n"
    + ("" if right[better][i] else f"is {images.classes[true[i]]}")
    for i in drawn
]
figure = gallery([images.test[i] for i in drawn], titles, columns=6)
for axes, i in zip(figure.axes, drawn, strict=True):
    axes.title.set_color("black" if right[better][i] else plots.COLORS[1])
keep(figure, "predictions")

# %% [markdown]
# ## What can we conclude?
#
# Two models differ on the test images. Part of that is chance, of two kinds. *Which images* happen to be in the test
# set: this we can estimate, image by image, from how often exactly one of the two models is right. *Which initial
# values, order and augmentation* were drawn: about this, one run each says nothing at all.

# %%
difference = right["all"].astype(float) - right["none"]
points = 100 * difference.mean()
margin = 100 * 1.96 * difference.std(ddof=1) / math.sqrt(len(difference))
only = {dropout: int((right[dropout] & ~right[other]).sum()) for dropout, other in (("all", "none"), ("none", "all"))}

print(f"Dropout instead of none: {points:+.2f} ± {margin:.2f} points of test accuracy (95 %, other test images).")
print(f"{only['all']} images are right only with dropout, {only['none']} only without.")
if abs(points) <= margin:
    print("Other test images could have shown the opposite: these two models cannot be told apart.")
else:
    print("These two models do differ on images like these; whether dropout is the reason, one seed cannot tell.")

# %% [markdown]
# So the question "does dropout help?" stays open here, and the answer may well be another one for longer training, a
# larger model or other augmentation. To find out, repeat both settings over seeds. This sweep does, counts the two
# runs above as done, and ends with a comparison: confidence intervals, and a sentence on whether the effect is
# significant.

# %%
repeated = {"dropout": "none,all", "seed": "0,1,2,3,4", **settings}
print(shlex.join(["python", "src/train.py", "-m", *(f"{key}={value}" for key, value in repeated.items())]))
print(f"\nAll runs and pictures of this tutorial are in {sweep}.")
