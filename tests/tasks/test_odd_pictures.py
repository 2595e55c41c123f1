"""Pictures of other modes, sizes and forms: converted, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from offsite.errors import OffsiteError
from offsite.tasks.data import rows_of
from offsite.tasks.image.classification import ImageClassification
from tests.support.models import classifier
from tests.support.pictures import image_processor, write_folder

TASK = ImageClassification()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_other_modes_are_converted(mode: str, tmp_path: Path, processor: Any) -> None:
    folder = write_folder(tmp_path)
    suffix = "tiff" if mode == "CMYK" else "png"
    Image.new(mode, (20, 30)).save(folder / "red" / f"odd.{suffix}")
    rows: Any = rows_of(TASK, folder, processor, None)
    for row in rows:
        assert row["pixel_values"].shape == (3, 16, 16)


def test_a_model_of_one_channel_takes_grey_pictures(tmp_path: Path) -> None:
    import transformers

    from tests.support.models import PICTURE_SHAPE as SHAPE

    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE, num_channels=1))
    folder = write_folder(tmp_path)
    grey = image_processor(image_mean=[0.5], image_std=[0.5])
    rows = rows_of(TASK, folder, grey, model)
    assert rows[0]["pixel_values"].shape == (1, 16, 16)
    with pytest.raises(OffsiteError, match=r"cannot take '.*png' of 24 x 20 pixels and mode L"):
        rows_of(TASK, folder, image_processor(), model)


def test_unreadable_pictures_are_named_and_skipped_only_on_request(
    tmp_path: Path, processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path)
    good = (folder / "red" / "0.png").read_bytes()
    (folder / "red" / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "red" / "notes.txt").write_text("no picture")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "red" / "deep.png")
    with pytest.raises(OffsiteError, match=r"Cannot read '.*cut\.png'.*--skip-bad"):
        rows_of(TASK, folder, processor, None)
    assert len(rows_of(ImageClassification(skip_bad=True), folder, processor, None)) == 12
    assert "Skipped 3 unreadable pictures" in caplog.text
    (folder / "red" / "cut.png").unlink()
    with pytest.raises(OffsiteError, match=r"'.*deep\.png' has more than 8 bits per channel"):
        rows_of(TASK, folder, processor, None)
    for file in (folder / "green").iterdir():
        file.write_bytes(b"")
    with pytest.raises(OffsiteError, match="No picture of the class 'green' is readable"):
        rows_of(ImageClassification(skip_bad=True), folder, processor, None)


def test_a_file_of_several_pictures_is_refused_but_for_a_cameras_preview(
    tmp_path: Path, processor: Any
) -> None:
    folder = write_folder(tmp_path)

    def save(name: str, kind: str) -> None:
        one, two = (Image.new("RGB", (20, 20), (shade, 0, 0)) for shade in (10, 200))
        one.save(folder / "red" / name, kind, save_all=True, append_images=[two])

    save("camera.jpg", "MPO")
    assert len(rows_of(TASK, folder, processor, None)) == 13
    for name, kind in (("many.gif", "GIF"), ("many.tif", "TIFF")):
        save(name, kind)
        with pytest.raises(OffsiteError, match=rf"{name}' holds 2 pictures; save the one"):
            rows_of(TASK, folder, processor, None)
        assert len(rows_of(ImageClassification(skip_bad=True), folder, processor, None)) == 13
        (folder / "red" / name).unlink()


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    large = image_processor(size={"height": 20, "width": 20})
    for family in ("vit", "clip", "siglip"):
        with pytest.raises(OffsiteError, match=r"shape \[3, 20, 20\], which the model cannot"):
            rows_of(TASK, folder, large, classifier(family))
    for family in ("beit", "dinov2"):  # these stretch their positions
        rows_of(TASK, folder, large, classifier(family))
    with pytest.raises(OffsiteError, match="no image processor"):
        rows_of(TASK, folder, None, classifier("vit"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_x": np.zeros((2, 4, 4))}, "holds the arrays train_x; it needs"),
        ({"a": np.zeros(2)}, "holds the arrays a; it needs train_x and train_y"),
        ({"x": np.zeros((2, 4, 4)), "y": np.arange(2)}, "float64 of shape"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8), "y": np.arange(2)}, r"shape \[2, 4, 4, 2\]"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(3)}, r"shape \[3\] for 2 pictures"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(2) / 2}, "are float64 of"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(2) - 1}, "numbers from 0"),
        (
            {"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(2), "labels": np.array(["a"])},
            "names 1 classes but uses number 1",
        ),
        (
            {"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(2), "labels": np.array(["a", "a"])},
            "names two classes 'a'",
        ),
        ({"x": np.zeros((0, 4, 4), np.uint8), "y": np.arange(0)}, "holds no picture"),
        ({"x": np.zeros((2, 0, 4), np.uint8), "y": np.arange(2)}, r"shape \[2, 0, 4\]"),
        (
            {"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(2), "classes": np.array("a")},
            r"names its classes in an array of shape \[\]",
        ),
        ({"x": np.array([{}, {}]), "y": np.arange(2)}, "not a readable .npz"),
    ],
)
def test_odd_arrays_are_refused(
    arrays: dict[str, Any], message: str, tmp_path: Path, processor: Any
) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(OffsiteError, match=message):
        rows_of(TASK, tmp_path / "odd.npz", processor, None)


def test_a_single_array_is_no_npz(tmp_path: Path, processor: Any) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(OffsiteError, match=r"not a readable \.npz file.*numpy\.savez"):
        rows_of(TASK, tmp_path / "one.npz", processor, None)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, AttributeError, NotImplementedError])
def test_whatever_a_reader_raises_is_an_unreadable_picture(
    error: type[Exception], tmp_path: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL.PngImagePlugin import PngImageFile

    prepare = PngImageFile.load_prepare

    def fail(image: Any) -> None:
        if image.size == (3, 5):
            raise error("secret")
        prepare(image)

    folder = write_folder(tmp_path)
    Image.new("RGB", (3, 5)).save(folder / "red" / "odd.png")
    monkeypatch.setattr(PngImageFile, "load_prepare", fail)
    with pytest.raises(OffsiteError, match=r"Cannot read '.*odd\.png'") as caught:
        rows_of(TASK, folder, processor, None)
    assert "secret" not in str(caught.value)
    assert len(rows_of(ImageClassification(skip_bad=True), folder, processor, None)) == 12


def test_pictures_of_several_shapes_are_found_when_they_are_loaded(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    plain = image_processor(do_resize=False)
    assert len(rows_of(TASK, folder, plain, None)) == 12  # all of one size
    Image.new("RGB", (24, 21)).save(folder / "red" / "odd.png")
    message = r"the shape \[3, 20, 24\].*odd\.png' the shape \[3, 21, 24\]; turn on do_resize"
    with pytest.raises(OffsiteError, match=message):
        rows_of(TASK, folder, plain, None)
    rows_of(TASK, folder, image_processor(), None)


def test_channels_other_than_grey_and_colour_are_named(tmp_path: Path, processor: Any) -> None:
    config = classifier("vit").config
    config.num_channels = 4
    task = ImageClassification()
    with pytest.raises(OffsiteError, match="reads pictures of 4 channels"):
        task.prepare(task.read(write_folder(tmp_path), train=True), processor, config)
