"""Tests of predict.py: its input, table and contact sheet, broken images, published weights."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo

import predict as predict_command
from config.commands import register_commands
from config.errors import ConfigError
from conftest import command, initialized
from data import datasets
from inference.prediction import SHEET
from processes import REPOSITORY
from test_evaluate import TINY_IMAGENET, as_timm_does, evaluate, photographs  # noqa: F401 (a fixture)
from test_weights import by_timm, randomized


def predict(*overrides: str) -> int:
    """Run `python src/predict.py OVERRIDES` within this process; return its exit code."""
    register_commands()
    with initialized():
        composed = compose("predict", list(overrides))
    return predict_command.run(composed, overrides)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Write the test set of digits as numbered files."""
    folder = tmp_path / "digits"
    folder.mkdir()
    split = datasets.read("digits", "").test
    for i in range(len(split)):
        split[i].save(folder / f"{i:03}.png")
    return folder


@pytest.mark.slow
def test_a_folder_is_predicted_as_the_test_set_was(digits_run: Path, digits: Path, tmp_path: Path) -> None:
    assert predict(f"checkpoint={digits_run}", f"images={digits}", f"output={tmp_path}/p.csv", "top=2") == 0
    table = pd.read_csv(tmp_path / "p.csv", dtype={"class1": str, "class2": str})
    assert list(table) == ["image", "class1", "probability1", "class2", "probability2"]
    assert list(table["image"]) == [f"{digits}/{i:03}.png" for i in range(360)]
    evaluate(tmp_path / "e", f"checkpoint={digits_run}")
    records = np.load(tmp_path / "e" / "predictions.npy")
    np.testing.assert_array_equal(table["class1"].astype(int), records["prediction"])
    right = records["prediction"] == records["label"]
    np.testing.assert_allclose(table["probability1"][right], records["probability"][right], atol=1e-6)
    assert (table["probability1"] >= table["probability2"]).all()
    with Image.open(tmp_path / "p.png") as sheet:
        assert sheet.width > 500


def test_broken_images_are_skipped_and_counted(
    digits_run: Path, digits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (digits / "000.png").write_bytes(b"nonsense")
    (digits / "001.png").write_bytes((digits / "001.png").read_bytes()[:60])
    arguments = [f"checkpoint={digits_run}", f"output={tmp_path}/p.json", "sheet=0", "data.batch_size=1"]
    assert predict(*arguments, f"images='{digits}/00[0-3].png'") == 2
    rows = json.loads((tmp_path / "p.json").read_text())
    assert [row["image"] for row in rows] == [f"{digits}/002.png", f"{digits}/003.png"]
    assert sum(prediction["probability"] for prediction in rows[0]["predictions"]) <= 1
    assert all(str(digits / name) in caplog.text for name in ("000.png", "001.png"))
    assert not (tmp_path / "p.png").exists()
    with pytest.raises(ConfigError, match="images="):
        predict(*arguments, f"images={digits}/000.png", "overwrite=true")
    assert json.loads((tmp_path / "p.json").read_text()) == rows


def test_a_name_that_is_not_utf_8_costs_nothing(digits_run: Path, digits: Path, tmp_path: Path) -> None:
    strange = os.fsdecode(os.fsencode(digits) + b"/caf\xe9.png")
    os.rename(digits / "000.png", strange)  # noqa: PTH104
    os.mkfifo(digits / "pipe.png")  # would be waited for
    options = [f"checkpoint={digits_run}", f"images={digits}"]
    assert predict(*options, f"output={tmp_path}/p.csv", "sheet=2") == 0
    assert f"{digits}/caf\\xe9.png" in list(pd.read_csv(tmp_path / "p.csv")["image"])
    assert predict(*options, f"output={tmp_path}/p.json", "sheet=0") == 0
    assert strange in [row["image"] for row in json.loads((tmp_path / "p.json").read_text())]


@pytest.mark.slow
def test_a_list_of_names_need_not_be_utf_8(digits_run: Path, digits: Path, tmp_path: Path) -> None:
    strange = os.fsencode(digits) + b"/caf\xe9.png"
    os.rename(digits / "000.png", strange)  # noqa: PTH104
    process = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "predict.py"), f"checkpoint={digits_run}", "images=-"],
        input=strange + b"\n", cwd=tmp_path, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr.decode(errors="replace")
    assert len(pd.read_csv(next(tmp_path.glob("outputs/predictions/*.csv")))) == 1


def test_lists_globs_and_standard_input(
    digits_run: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{digits}/007.png\n{digits}/003.png\n"))
    images = f"images=[{digits}/359.png,-,'{digits}/01*.png']"
    predict(f"checkpoint={digits_run}", images, f"output={tmp_path}/p.csv", "sheet=0")
    names = [Path(path).stem for path in pd.read_csv(tmp_path / "p.csv")["image"]]
    assert names == ["359", "007", "003", *(f"{i:03}" for i in range(10, 20))]


@pytest.mark.slow
@torch.no_grad()
def test_published_weights_say_imagenet_s_words(photographs: Path, tmp_path: Path) -> None:  # noqa: F811
    model = randomized(by_timm(*TINY_IMAGENET, "relu"))
    torch.save(model.state_dict(), tmp_path / "convmixer_768_32_ks7_p7_relu.pth.tar")
    predict(
        f"checkpoint={tmp_path}/convmixer_768_32_ks7_p7_relu.pth.tar", f"images={photographs}/val",
        f"output={tmp_path}/p.json",
    )  # fmt: skip
    rows = json.loads((tmp_path / "p.json").read_text())
    likeliest = [row["predictions"][0]["probability"] for row in rows]
    np.testing.assert_allclose(likeliest, as_timm_does(model, photographs).max(1).values, atol=1e-5)
    assert all(
        prediction["class"] in ImageNetInfo().label_descriptions() for row in rows for prediction in row["predictions"]
    )


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (("images={digits}/*.jpg",), "images="),
        (("images={digits}", "output=table.xlsx"), "output=table.xlsx"),
        (("images={digits}", "top=0"), "top=0"),
        (("images={digits}", "checkpoint={foreign}"), "data.image_size"),
        (
            ("images={digits}", "checkpoint={foreign}", "data.image_size=8", "data.mean=[0.5,1]", "data.std=[1]"),
            "mean=",
        ),
        (("images={digits}", "checkpoint={four}", "data.image_size=8"), "4 channels"),
        (("images={digits}", "output=digits/000.png/table.csv"), "not a folder"),
        (("images={digits}", "checkpoint={foreign}", "data.image_size=9", "data.mean=[0.5]", "data.std=[0.5]"), "=9"),
    ],
)
def test_what_does_not_fit_is_named(
    overrides: tuple[str, ...],
    names: str,
    digits_run: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    foreign = tmp_path / "gelu.pt"
    torch.save(by_timm(8, 1, 3, 2, 10, "gelu", channels=1).state_dict(), foreign)
    four = tmp_path / "four-gelu.pt"
    torch.save(by_timm(8, 1, 3, 2, 10, "gelu", channels=4).state_dict(), four)
    monkeypatch.chdir(tmp_path)
    words = [override.format(digits=digits, foreign=foreign, four=four) for override in overrides]
    if not any(override.startswith("checkpoint") for override in words):
        words.append(f"checkpoint={digits_run}")
    with pytest.raises(ConfigError, match=names):
        predict(*words)


def test_a_picture_of_others_is_never_replaced(digits_run: Path, digits: Path, tmp_path: Path) -> None:
    arguments = (f"checkpoint={digits_run}", f"images={digits}/000.png", f"output={tmp_path}/p.csv")
    predict(*arguments)
    assert predict(*arguments, "overwrite=true") == 0
    (tmp_path / "p.png").write_bytes((digits / "001.png").read_bytes())
    with pytest.raises(ConfigError, match=r"p\.png"):
        predict(*arguments, "overwrite=true")
    assert (tmp_path / "p.png").read_bytes() == (digits / "001.png").read_bytes()
    predict(*arguments, "overwrite=true", "sheet=0")


def test_links_in_the_place_of_results_are_replaced(digits_run: Path, digits: Path, tmp_path: Path) -> None:
    (theirs := tmp_path / "theirs").write_text(SHEET)
    for name in ("p.csv", "p.png"):
        (tmp_path / name).symlink_to(theirs)
    predict(f"checkpoint={digits_run}", f"images={digits}/000.png", f"output={tmp_path}/p.csv", "overwrite=true")
    assert theirs.read_text() == SHEET
    assert not any((tmp_path / name).is_symlink() for name in ("p.csv", "p.png"))


def test_the_exit_code_says_that_images_were_skipped(digits_run: Path, digits: Path, tmp_path: Path) -> None:
    (digits / "000.png").write_bytes(b"nonsense")
    done = command(f"checkpoint={digits_run}", f"images={digits}", cwd=tmp_path, script="predict")
    assert done.returncode == 2, done.stderr
    assert len(pd.read_csv(next(tmp_path.glob("outputs/predictions/*.csv")))) == 359
