"""Tests of fine-tuning: the loaded weights, the trained ones, and their part in the run's ID."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models import adapt_input_conv

from config.errors import ConfigError
from conftest import TINY, Finished, checked, command
from test_weights import by_timm, randomized
from tracking.identity import run_id
from training.model import make_model
from training.optimization import make_optimizer, set_lr
from weights.pretrained import adapt_channels, load_pretrained

Train = Callable[..., Finished]
SHAPE = ("model.d_model=16", "model.depth=2", "model.kernel_size=5", "model.patch_size=1")


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
def test_channels_are_adapted_as_timm_does(channels: int) -> None:
    weight = torch.randn(8, 3, 4, 4)
    torch.testing.assert_close(adapt_channels(weight, channels), adapt_input_conv(channels, weight))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Write RGB weights in timm's layout, with ten classes."""
    torch.save(randomized(by_timm(16, 2, 5, 1, 10, "relu")).state_dict(), tmp_path / "relu.pth.tar")
    return tmp_path / "relu.pth.tar"


@pytest.mark.parametrize(("channels", "n_classes"), [(3, 10), (1, 10), (3, 5)])
def test_what_fits_is_taken(channels: int, n_classes: int, published: Path) -> None:
    config = checked(*SHAPE, f"model.pretrained={published}")
    model = make_model(config, channels, n_classes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights, sentence = load_pretrained(model, config.model, channels, [str(i) for i in range(n_classes)])
    for name, tensor in model.state_dict().items():
        if name.startswith("classification") and n_classes == 5:
            assert torch.equal(tensor, before[name])
        elif name == "patch_emb.conv.weight":
            torch.testing.assert_close(tensor, adapt_input_conv(channels, weights.tensors[name]))
        else:
            assert torch.equal(tensor, weights.tensors[name])
    assert ("5 classes" in sentence, "to 1 channels" in sentence) == (n_classes == 5, channels == 1)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (("model.depth=3", "model.kernel_size=7"), "model.depth=2 model.kernel_size=5"),
        (("model.activation=gelu",), "model.activation=relu"),
        (("model.pretrained=nothing.pt",), "model.pretrained=nothing.pt"),
    ],
)
def test_weights_of_another_model_say_what_to_set(overrides: tuple[str, ...], names: str, published: Path) -> None:
    with pytest.raises(ConfigError, match=names):
        config = checked(*SHAPE, f"model.pretrained={published}", *overrides)
        load_pretrained(make_model(config, 3, 10), config.model, 3, ["0"] * 10)


def test_the_content_of_the_weights_is_part_of_the_id(published: Path, tmp_path: Path) -> None:
    def identity(path: Path) -> str:
        return run_id(checked(*SHAPE, f"model.pretrained={path}"))

    original = identity(published)
    weights = torch.load(published)
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "elsewhere.pt")
    assert identity(tmp_path / "elsewhere.pt") == original
    assert run_id(checked(*SHAPE)) != original
    weights["head.bias"] += 1
    torch.save(weights, published)
    assert identity(published) != original
    assert run_id(checked("model.depth=1", "trainer.epochs=1")) == "3b09320a"


@pytest.mark.slow
def test_what_a_file_says_beside_its_weights_is_part_of_the_id(digits_run: Path, tmp_path: Path) -> None:
    content = torch.load(digits_run / "checkpoints" / "best.pt", weights_only=True)

    def identity(**changes: object) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        torch.save({key: value for key, value in {**content, **changes}.items() if value is not None}, path)
        return run_id(checked(*TINY, "model.kernel_size=4", f"model.pretrained={path}"))

    same = run_id(checked(*TINY, "model.kernel_size=4", f"model.pretrained={digits_run}"))
    assert identity() == identity(metrics=None) == same
    others = {identity(config=None), identity(mean=[0.25]), identity(classes=list("abcdefghij"))}
    assert len(others) == 3 and same not in others


@pytest.mark.slow
def test_the_whole_model_must_be_that_of_the_weights(train: Train) -> None:
    """Keys that the shapes of the weights do not show count, too."""
    done = train("model.residual_pointwise=true", "trainer.epochs=1")
    config = checked(*TINY, f"model.pretrained={done.folder}")
    with pytest.raises(ConfigError, match=r"set model\.residual_pointwise=true$"):
        load_pretrained(make_model(config, 1, 10), config.model, 1, list("0123456789"))
    config = checked(
        *TINY, f"model.pretrained={done.folder}", "model.residual_pointwise=true", "model.backend=reference"
    )
    load_pretrained(make_model(config, 1, 10), config.model, 1, list("0123456789"))


@pytest.mark.parametrize("freeze", ["none", "all_but_head", "depthwise", "patch_emb"])
def test_frozen_parts_stay_as_they_were(freeze: str, digits_run: Path, train: Train) -> None:
    before = torch.load(digits_run / "checkpoints" / "best.pt", weights_only=True)
    tuned = train(
        "model.kernel_size=4", f"model.pretrained={digits_run}", f"trainer.freeze={freeze}", "trainer.epochs=1",
        "scheduler=constant", "seed=1",
    )  # fmt: skip
    after = torch.load(tuned.folder / "checkpoints" / "best.pt", weights_only=True)
    names = [name for name in after["model"] if "num_batches" not in name]
    kept = {name for name in names if torch.equal(after["model"][name], before["model"][name])}
    part = {"none": "nothing", "all_but_head": "", "depthwise": ".depth_wise_conv.", "patch_emb": "patch_emb."}[freeze]
    assert kept == {name for name in names if part in name and not name.startswith("classification")}
    assert after["mean"] == before["mean"]  # although a tenth of the images has another
    assert tuned.summary["pretrained"].startswith("starts from")


def test_lower_layers_learn_more_slowly() -> None:
    config = checked(*SHAPE, "optimizer.layer_decay=0.5", "optimizer.lr=0.1")
    model = make_model(config, 1, 10)
    optimizer = make_optimizer(model, config.optimizer)
    set_lr(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for module, rate in (
        (model.classification, 0.1), (model.conv_mixer_layers[1], 0.05), (model.conv_mixer_layers[0], 0.025),
        (model.patch_emb, 0.0125),
    ):  # fmt: skip
        assert all(rates[id(p)] == pytest.approx(rate) for p in module.parameters())


@pytest.mark.slow
def test_fine_tuning_in_a_sweep(digits_run: Path, tmp_path: Path) -> None:
    done = command(
        "-m", f"model.pretrained={digits_run},null", "trainer.freeze=none,all_but_head", "model.d_model=16",
        "model.depth=2", "model.kernel_size=4", "trainer.epochs=1", "data.train_fraction=0.1", "sweep=s",
        "trainer.figures=false", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len({path.parent.name.rpartition("-")[2] for path in tmp_path.glob("outputs/s/*/summary.json")}) == 4
