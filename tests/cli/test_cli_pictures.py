"""The commands on pictures: the round trip on folders and arrays, and a sentence for bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from tests.support import Run
from tests.support.models import PICTURE_SHAPE, backbone, classifier
from tests.support.pictures import NAMES, image_processor, write_arrays, write_folder

IMAGES = ("--task", "image-classification", "--device", "cpu")
SHORT = ("--steps", 2, "--batch-size", 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, and the same pictures as arrays and as folders below train and test."""
    folder = tmp_path_factory.mktemp("vision")
    classifier("vit").save_pretrained(folder / "model")
    image_processor().save_pretrained(folder / "model")
    write_arrays(folder)
    for part in ("train", "test"):
        write_folder(folder / part).rename(folder / part / "all")
        shutil.copytree(folder / part / "all", folder / "folders" / part)
    return folder


@pytest.fixture
def offer(run: Run, made: Path, tmp_path: Path) -> Path:
    """An offer of the model, made by the command."""
    words = ("--adapter", "ends:1,1", "--keep", 2, *IMAGES)
    status, _, err = run("offer", made / "model", "--out", tmp_path / "offer", *words)
    assert status == 0, err
    return tmp_path / "offer"


@pytest.mark.parametrize("option", ["--data", "--eval-data"])
def test_an_offer_of_a_model_without_these_classes_is_not_scored(
    option: str, run: Run, made: Path, tmp_path: Path
) -> None:
    backbone("dinov2").save_pretrained(tmp_path / "model")
    image_processor().save_pretrained(tmp_path / "model")
    words = ("--adapter", "ends:1,1", "--recipe", "narrow-align@0.6", *IMAGES)
    data = ("--data", made / "colours.npz", option, made / "colours.npz")
    status, out, err = run("offer", tmp_path / "model", "--out", tmp_path / "offer", *words, *data)
    assert status == 0, err
    assert "made for other classes" in err and "zero-shot" not in out


@pytest.mark.parametrize("source", ["colours.npz", "folders"])
def test_round_trip_by_commands(
    source: str, run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = made / "model", made / source
    recipe = [{"kind": "drop", "keep": 2}, {"kind": "distill", "steps": 2, "lm_weight": 0}]
    Path("recipe.json").write_text(json.dumps(recipe))
    steps: list[tuple[object, ...]] = [
        ("offer", model, "--out", "offer", "--adapter", "ends:1,1", "--recipe", "recipe.json",
         "--data", data, *IMAGES),
        ("tune", "offer", "--data", data, "--eval-data", data, "--delta", "lora:rank=2", "--out",
         "delta", *SHORT),
        ("plug", model, "delta", "--record", "offer.record.json", "--out", "plugged"),
        ("score", "offer", "--data", made / "colours.npz", *IMAGES),
        ("score", "plugged", "--data", data, *IMAGES, "--json"),
        ("inspect", "delta"),
    ]  # fmt: skip
    for words in steps:
        status, out, err = run(*words)
        assert status == 0, err
        if words[1] == "plugged":
            assert json.loads(out)["metric"] == "accuracy"
    labels = json.loads(Path("delta/manifest.json").read_text())["labels"]
    assert sorted(labels) == sorted(NAMES)


def test_lab_report_and_sweep(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, model = made / "folders", made / "model"
    long = ("--steps", 40, "--batch-size", 12, "--lr", 0.02)  # so that tuning gains something
    words = ("--data", data, "--eval-data", data, *long, *IMAGES, "--adapter", "ends:1,1")
    status, out, err = run("lab", model, *words, "--keep", 2, "--delta", "head", "--out", "lab")
    assert status == 0 and "head" in out, err
    status, _, err = run("report", "lab", "--out", "page.html")
    assert status == 0 and "accuracy" in Path("page.html").read_text(), err
    more = ("--recipe", "uniform", "--budgets", "0.5,1", "--out", "sweep")
    status, out, err = run("sweep", model, *words, "--delta", "head", *more)
    assert status == 0 and "front" in out and Path("sweep/frontier.png").exists(), err


def test_unreadable_pictures_are_skipped_only_on_request(
    run: Run, made: Path, offer: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(made / "folders" / "train", bad)
    good = (bad / "red" / "0.png").read_bytes()
    (bad / "red" / "cut.png").write_bytes(good[: len(good) // 2])
    recipe = tmp_path / "recipe.json"
    recipe.write_text('[{"kind": "distill", "steps": 1, "lm_weight": 0}]')
    commands: dict[str, tuple[object, ...]] = {
        "offer": ("offer", made / "model", "--recipe", recipe, *IMAGES),
        "tune": ("tune", offer, "--delta", "head", *SHORT),
        "score": ("score", made / "model", *IMAGES),
        "lab": ("lab", made / "model", "--eval-data", bad, "--delta", "head", *SHORT, *IMAGES),
    }
    for name, words in commands.items():
        out = () if name == "score" else ("--out", tmp_path / f"out-{name}")
        status, _, err = run(*words, "--data", bad, *out)
        assert status != 0 and "cut.png" in err and "--skip-bad" in err and "Trace" not in err, name
        status, _, err = run(*words, "--data", bad, *out, "--skip-bad")
        assert status == 0, (name, err)
    text = ("score", made / "model", "--data", bad, "--skip-bad", "--task", "text")
    status, _, err = run(*text)
    assert status != 0 and "reads no pictures" in err


def empty(folder: Path) -> None:
    (folder / "blue").mkdir()


def single(folder: Path) -> None:
    shutil.rmtree(folder / "red")
    shutil.rmtree(folder / "green")


def none(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty, "The class 'blue' of"),
        (single, "has the one class 'yellow'; at least two are needed"),
        (none, "has no folders"),
        (shutil.rmtree, "There is no data"),
    ],
)
def test_folders_that_cannot_be_tuned_on(
    change: Callable[[Path], Any], message: str, run: Run, made: Path, offer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(made / "folders" / "train", folder)
    change(folder)
    status, out, err = run("tune", offer, "--data", folder, "--out", tmp_path / "delta", *SHORT)
    assert status != 0 and message in err and not out
    assert err.strip().count("\n") == 0 and not (tmp_path / "delta").exists()


def test_classes_to_score_on_are_seen_before_any_training(
    run: Run, made: Path, offer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, other = tmp_path / "few", tmp_path / "other"
    shutil.copytree(made / "folders" / "train", few)
    shutil.rmtree(few / "green")
    shutil.copytree(few, other)
    (other / "red").rename(other / "blue")
    words = ("--data", made / "folders" / "train", *SHORT, "--eval-data")
    status, _, err = run("tune", offer, *words, few, "--out", tmp_path / "delta")
    assert status == 0, err
    monkeypatch.setattr("offsite.tuner.tuning.fit", None)
    for command in (("tune", offer), ("lab", made / "model", "--keep", 2, *IMAGES)):
        status, _, err = run(*command, *words, other, "--out", tmp_path / "out")
        assert status == 2 and "has the class 'blue', and the data to tune on does not" in err


@pytest.mark.parametrize("mode", ["L", "RGBA", "1", "P"])
def test_other_modes_are_tuned_on(
    mode: str, run: Run, made: Path, offer: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(made / "folders" / "train", folder)
    Image.new(mode, (30, 9)).save(folder / "red" / "odd.png")
    words = ("--delta", "head", *SHORT)
    status, _, err = run("tune", offer, "--data", folder, "--out", tmp_path / "delta", *words)
    assert status == 0, err


def test_a_processor_of_another_size_is_refused(run: Run, made: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    classifier("vit").save_pretrained(model)
    image_processor(size={"height": 20, "width": 20}).save_pretrained(model)
    words = "shape [3, 20, 20], which the model cannot embed"
    status, _, err = run("score", model, "--data", made / "folders", *IMAGES)
    assert status == 2 and words in err
    keep = ("--keep", 2, "--adapter", "ends:1,1")
    status, out, _ = run("offer", model, *keep, "--out", tmp_path / "out", *IMAGES)
    assert status == 0 and "This offer cannot be tuned." in out and words in out
    tune = ("tune", tmp_path / "out", "--data", made / "folders", "--out", tmp_path / "delta")
    status, _, err = run(*tune)
    assert status == 2 and words in err


def test_the_owner_hears_that_no_picture_can_be_given_to_a_model(run: Run, tmp_path: Path) -> None:
    """ImageGPT reads colours as tokens, SigLIP 2 patches; a distilled DeiT has two heads."""
    shape = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 64, "vocab_size": 9}
    eyes = {**PICTURE_SHAPE, "num_patches": 16}
    odd = {
        "of shape (channels, height, width)": (
            transformers.Siglip2Config(vision_config=eyes),
            transformers.Siglip2ImageProcessor(patch_size=4, max_num_patches=16),
        ),
        "gives input_ids and not pixel_values": (
            transformers.ImageGPTConfig(**shape),
            transformers.ImageGPTImageProcessor(clusters=[[0.0, 0.0, 0.0]] * 8),
        ),
    }
    two_heads = transformers.DeiTConfig(**PICTURE_SHAPE)
    two_heads.architectures = ["DeiTForImageClassificationWithTeacher"]
    odd["has no single linear classifier head"] = two_heads, image_processor()
    for index, (message, (config, processor)) in enumerate(odd.items()):
        model = tmp_path / f"model-{index}"
        name = (config.architectures or ["AutoModelForImageClassification"])[0]
        family = getattr(transformers, name)
        build = family(config) if config.architectures else family.from_config(config)
        build.save_pretrained(model)
        processor.save_pretrained(model)
        words = ("--keep", 1, "--adapter", "ends:1,1", "--out", tmp_path / f"offer-{index}")
        status, out, err = run("offer", model, *words, *IMAGES)
        assert status == 0 and "This offer cannot be tuned." in out and message in out, err


def test_a_processor_of_an_unknown_class_is_read_alike_by_both_sides(
    run: Run, made: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(made / "model", model)
    file = model / "preprocessor_config.json"
    told = json.loads(file.read_text()) | {"image_processor_type": "OwnImageProcessor"}
    file.write_text(json.dumps(told))
    keep = ("--keep", 2, "--adapter", "ends:1,1", "--out", tmp_path / "offer")
    data = ("--data", made / "folders")
    steps: list[tuple[object, ...]] = [
        ("offer", model, *keep, *IMAGES),
        ("tune", tmp_path / "offer", *data, "--out", tmp_path / "delta", *SHORT),
        ("plug", model, tmp_path / "delta", "--record", tmp_path / "offer.record.json",
         "--out", tmp_path / "plugged"),
        ("score", tmp_path / "plugged", *data, *IMAGES),
    ]  # fmt: skip
    for words in steps:
        status, _, err = run(*words)
        assert status == 0, err


def test_text_for_an_offer_of_pictures_is_called_that(
    run: Run, offer: Path, text_file: Path, tmp_path: Path
) -> None:
    words = ("--data", text_file, "--task", "text", "--out", tmp_path / "delta")
    status, _, err = run("tune", offer, *words)
    assert status == 2 and "is for the task 'image-classification', and the data is for" in err


def test_backbones_by_folder_get_a_head(run: Run, made: Path, tmp_path: Path) -> None:
    from tests.support.models import backbone

    model = tmp_path / "bare"
    backbone("dinov2").save_pretrained(model)
    image_processor().save_pretrained(model)
    words = ("--adapter", "ends:1,1", "--keep", 1, *IMAGES)
    status, _, err = run("offer", model, "--out", tmp_path / "offer", *words)
    assert status == 0, err
    tune = ("tune", tmp_path / "offer", "--data", made / "folders", "--out", tmp_path / "delta")
    status, _, err = run(*tune, "--delta", "bitfit", *SHORT)
    assert status == 0, err
    plug = ("plug", model, tmp_path / "delta", "--out", tmp_path / "plugged")
    status, _, err = run(*plug, "--record", tmp_path / "offer.record.json")
    assert status == 0, err
    status, _, err = run("score", tmp_path / "plugged", "--data", made / "folders", *IMAGES)
    assert status == 0, err


@pytest.mark.parametrize(
    ("bare", "config"), [("ViTModel", "ViTConfig"), ("Dinov2Model", "Dinov2Config"),
                         ("CLIPModel", "CLIPConfig")],
)  # fmt: skip
def test_inspect_shows_bare_image_models(bare: str, config: str, run: Run, tmp_path: Path) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 32}
    eyes = {**size, "image_size": 16, "patch_size": 4}
    words = {**size, "vocab_size": 50}
    parts = {"vision_config": eyes, "text_config": words} if bare == "CLIPModel" else eyes
    model = getattr(transformers, bare)(getattr(transformers, config)(**parts))
    model.save_pretrained(tmp_path / "model")
    status, out, err = run("inspect", tmp_path / "model", "--json")
    assert status == 0 and json.loads(out)["parameters"] > 0, err
