"""Pictures from every source, what is done to them, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offsite.errors import MissingExtraError, OffsiteError
from offsite.model.heads import give_head, labels_of
from offsite.tasks import load_task
from offsite.tasks.image.augment import augment
from offsite.tasks.image.classification import ImageClassification
from offsite.tasks.image.pictures import read_pictures
from tests.support.models import classifier
from tests.support.pictures import NAMES, image_processor, paint, write_arrays, write_folder

TASK = ImageClassification()


@pytest.fixture(scope="module")
def processor() -> Any:
    return image_processor()


def named(*labels: str) -> Any:
    """A model whose head knows these classes."""
    model = classifier("vit", labels=2)
    give_head(model, labels)
    return model


def test_arrays_choose_the_split_and_the_classes(tmp_path: Path, processor: Any) -> None:
    path = write_arrays(tmp_path)
    assert len(TASK.load(path, processor, None, train=True)) == 24
    assert len(TASK.load(path, processor, None)) == 12
    assert len(TASK.load(f"{path}:train", processor, None)) == 24
    some = TASK.load(f"{path}:test:yellow,red", processor, None)
    assert some.labels == ("red", "yellow") and len(some) == 8 and set(some.targets) == {0, 1}
    assert some[0]["pixel_values"].shape == (3, 16, 16)
    assert torch.equal(some[0]["pixel_values"], some[0]["pixel_values"])
    x, y = paint(3, 2, 0)
    np.savez(tmp_path / "plain.npz", x=x[..., :1], y=y + 5)
    rows = TASK.load(tmp_path / "plain.npz", processor, None, train=True)
    assert rows.labels == ("5", "6", "7") and rows.targets == (0, 1, 2, 0, 1, 2)
    with pytest.raises(OffsiteError, match="no class 'blue'; it has red, green, yellow"):
        TASK.load(f"{path}:test:blue", processor, None)
    with pytest.raises(OffsiteError, match=r"no split 'dev'.*one of: test, train"):
        TASK.load(f"{path}:dev", processor, None)


def test_folders_give_the_same_pictures(tmp_path: Path, processor: Any) -> None:
    folder = write_folder(tmp_path)
    rows = TASK.load(folder, processor, None)
    assert rows.labels == tuple(sorted(NAMES)) and len(rows) == 12
    x, _ = paint(3, 4, 0)
    for index in range(len(rows)):
        number = int(Path(rows.pictures.where(index).strip("'")).stem)
        expected = processor(images=Image.fromarray(x[number]), return_tensors="pt")
        assert torch.equal(rows[index]["pixel_values"], expected["pixel_values"][0])
    (tmp_path / "both").mkdir()
    folder.rename(tmp_path / "both" / "train")
    write_folder(tmp_path / "again").rename(tmp_path / "both" / "test")
    (tmp_path / "both" / "test" / "red" / "0.png").unlink()
    assert len(TASK.load(tmp_path / "both", processor, None, train=True)) == 12
    assert len(TASK.load(tmp_path / "both", processor, None)) == 11


def test_saved_datasets_are_read(
    tmp_path: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    x, y = paint(3, 2, 0)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    data = datasets.Dataset.from_dict({"img": list(x), "label": y.tolist()}, features=features)
    datasets.DatasetDict({"train": data, "validation": data.select([0, 1])}).save_to_disk(
        tmp_path / "saved"
    )
    rows = TASK.load(tmp_path / "saved", processor, None, train=True)
    assert rows.labels == NAMES and rows.targets == tuple(y)
    first = processor(images=Image.fromarray(x[0]), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(rows[0]["pixel_values"], first)
    with pytest.raises(OffsiteError, match=r"class 'yellow' of .* has no picture"):
        TASK.load(tmp_path / "saved", processor, None)
    data.remove_columns("label").save_to_disk(tmp_path / "bare")
    with pytest.raises(OffsiteError, match="its columns are img"):
        TASK.load(tmp_path / "bare", processor, None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"offsite\[vision\]"):
        TASK.load(tmp_path / "saved", processor, None)


def test_pictures_without_a_class_or_content_are_not_taken(tmp_path: Path, processor: Any) -> None:
    import datasets

    x, _ = paint(3, 2, 0)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    )
    for name, hidden in (("minus", -1), ("null", None)):
        labels = [0, 1, 2, 0, hidden, 2]
        data = datasets.Dataset.from_dict({"img": list(x), "label": labels}, features=features)
        data.save_to_disk(tmp_path / name)
        with pytest.raises(OffsiteError, match=f"^picture 4 in '.*{name}' has no class of the 3"):
            TASK.load(tmp_path / name, processor, None)
    parts = {"img": [*x[:5], None], "label": [0, 1, 2] * 2}
    datasets.Dataset.from_dict(parts, features=features).save_to_disk(tmp_path / "gap")
    with pytest.raises(OffsiteError, match="Cannot read picture 5 in"):
        TASK.load(tmp_path / "gap", processor, None)
    assert len(ImageClassification(skip_bad=True).load(tmp_path / "gap", processor, None)) == 5


def test_classes_take_the_order_of_the_model(tmp_path: Path, processor: Any) -> None:
    path = write_arrays(tmp_path)
    rows = TASK.load(path, processor, named("yellow", "red", "green"), train=True)
    assert rows.labels == ("yellow", "red", "green") and rows.targets[:3] == (1, 2, 0)
    few = f"{path}:test:red,green"
    rows = TASK.load(few, processor, named("yellow", "red", "green"))
    assert rows.labels == ("yellow", "red", "green") and set(rows.targets) == {1, 2}
    rows = TASK.load(few, processor, named("yellow", "red", "green"), train=True)
    assert rows.labels == ("red", "green")
    other = named("a", "b", "c")
    rows = TASK.load(path, processor, other)
    with pytest.raises(OffsiteError, match="red, green, yellow, but the model knows a, b, c"):
        TASK.evaluate(other, rows)


def test_a_head_is_kept_for_its_classes_and_zero_for_others() -> None:
    model = classifier("vit", labels=3)
    old = model.classifier.weight
    give_head(model, NAMES)
    assert model.classifier.weight is not old and torch.equal(model.classifier.weight, old)
    assert labels_of(model) == NAMES and model.config.num_labels == model.num_labels == 3
    give_head(model, ("0", "1", "2"))
    assert labels_of(model) == NAMES and torch.equal(model.classifier.weight, old)
    give_head(model, ("a", "b", "c"))
    assert labels_of(model) == ("a", "b", "c") and not model.classifier.weight.any()


def test_classes_of_other_numbers_are_not_taken_for_one_another(
    tmp_path: Path, processor: Any
) -> None:
    x, y = paint(2, 2, 0)
    np.savez(tmp_path / "later.npz", x=x, y=y + 1)
    tuned = named("0", "1")
    rows = TASK.load(tmp_path / "later.npz", processor, tuned)
    with pytest.raises(OffsiteError, match="classes 1, 2, but the model knows LABEL_0, LABEL_1"):
        TASK.evaluate(tuned, rows)
    with pytest.raises(OffsiteError, match="classes 1, 2, but the model knows 2, 3"):
        TASK.evaluate(named("2", "3"), rows)
    np.savez(tmp_path / "plain.npz", x=x, y=y)
    for labels in (("0", "1"), ("LABEL_0", "LABEL_1"), ("cat", "dog")):
        model = named(*labels)
        TASK.evaluate(model, TASK.load(tmp_path / "plain.npz", processor, model))


def test_augmentation_depends_on_the_batch_alone(tmp_path: Path, processor: Any) -> None:
    path = write_arrays(tmp_path)
    rows = TASK.load(path, processor, None, train=True)
    batch = [rows[i] for i in (3, 1, 4)]
    torch.manual_seed(1)
    first = TASK.collate(batch)["pixel_values"]
    torch.manual_seed(2)
    assert torch.equal(first, TASK.collate(batch)["pixel_values"])
    assert not torch.equal(first, TASK.collate(batch[::-1])["pixel_values"].flip(0))
    plain = ImageClassification(augment=()).collate(batch)["pixel_values"]
    assert torch.equal(plain, torch.stack([row["pixel_values"] for row in batch]))
    scored = TASK.load(path, processor, None)
    kept = TASK.collate([scored[0]])["pixel_values"][0]
    assert torch.equal(kept, scored[0]["pixel_values"])
    with pytest.raises(OffsiteError, match="not an augmentation"):
        ImageClassification(augment=("blur",))


def test_each_augmentation_does_what_it_says() -> None:
    images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    flipped = augment(images, ("flip",), 0)
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True)) and 16 < sum(same) < 48
    cropped = augment(images, ("crop",), 0)
    assert cropped.shape == images.shape
    for new, old in zip(cropped, images, strict=True):
        inner = old[:, 4:12, 4:12]
        places = [(r, c) for r in range(2, 7) for c in range(2, 7)]
        assert any(torch.equal(new[:, r : r + 8, c : c + 8], inner) for r, c in places)
    coloured = augment(images, ("colour",), 0)
    assert not torch.equal(coloured, images)
    assert (coloured - images).abs().max() < 5 and augment(images, (), 0) is images


def test_augmentation_is_chosen_with_the_name_of_the_task() -> None:
    name = "image-classification"
    assert load_task(f"{name}:augment=none") == ImageClassification(augment=())
    chosen = load_task(f"{name}:augment=crop+colour", skip_bad=True)
    assert chosen == ImageClassification(("crop", "colour"), skip_bad=True)
    with pytest.raises(OffsiteError, match="'blur=3' is not an option of image-classification"):
        load_task(f"{name}:blur=3")
    with pytest.raises(OffsiteError, match="'tilt' is not an augmentation"):
        load_task(f"{name}:augment=flip+tilt")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_other_modes_are_converted(mode: str, tmp_path: Path, processor: Any) -> None:
    folder = write_folder(tmp_path)
    suffix = "tiff" if mode == "CMYK" else "png"
    Image.new(mode, (20, 30)).save(folder / "red" / f"odd.{suffix}")
    rows: Any = TASK.load(folder, processor, None)
    for row in rows:
        assert row["pixel_values"].shape == (3, 16, 16)


def test_a_model_of_one_channel_takes_grey_pictures(tmp_path: Path) -> None:
    import transformers

    from tests.support.models import PICTURE_SHAPE as SHAPE

    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SHAPE, num_channels=1))
    folder = write_folder(tmp_path)
    grey = image_processor(image_mean=[0.5], image_std=[0.5])
    rows = TASK.load(folder, grey, model)
    assert rows[0]["pixel_values"].shape == (1, 16, 16)
    with pytest.raises(OffsiteError, match=r"cannot take '.*png' of 24 x 20 pixels and mode L"):
        TASK.load(folder, image_processor(), model)


def test_unreadable_pictures_are_named_and_skipped_only_on_request(
    tmp_path: Path, processor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_folder(tmp_path)
    good = (folder / "red" / "0.png").read_bytes()
    (folder / "red" / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "red" / "notes.txt").write_text("no picture")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "red" / "deep.png")
    with pytest.raises(OffsiteError, match=r"Cannot read '.*cut\.png'.*--skip-bad"):
        TASK.load(folder, processor, None)
    assert len(ImageClassification(skip_bad=True).load(folder, processor, None)) == 12
    assert "Skipped 3 unreadable pictures" in caplog.text
    (folder / "red" / "cut.png").unlink()
    with pytest.raises(OffsiteError, match=r"'.*deep\.png' has more than 8 bits per channel"):
        TASK.load(folder, processor, None)
    for file in (folder / "green").iterdir():
        file.write_bytes(b"")
    with pytest.raises(OffsiteError, match="No picture of the class 'green' is readable"):
        ImageClassification(skip_bad=True).load(folder, processor, None)


def test_empty_and_single_classes_are_refused(tmp_path: Path, processor: Any) -> None:
    folder = write_folder(tmp_path)
    (folder / "blue").mkdir()
    with pytest.raises(OffsiteError, match=r"class 'blue' of .* has no picture"):
        TASK.load(folder, processor, None)
    with pytest.raises(OffsiteError, match="one class 'red'; at least two"):
        TASK.load(f"{write_arrays(tmp_path)}:train:red", processor, None, train=True)
    (tmp_path / "none").mkdir()
    with pytest.raises(OffsiteError, match="has no folders"):
        TASK.load(tmp_path / "none", processor, None)
    with pytest.raises(OffsiteError, match="does not hold pictures"):
        TASK.load(tmp_path / "missing", processor, None)


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    large = image_processor(size={"height": 20, "width": 20})
    for family in ("vit", "clip", "siglip"):
        with pytest.raises(OffsiteError, match=r"shape \[3, 20, 20\], which the model cannot"):
            TASK.load(folder, large, classifier(family))
    for family in ("beit", "dinov2"):  # these stretch their positions
        TASK.load(folder, large, classifier(family))
    with pytest.raises(OffsiteError, match="no image processor"):
        TASK.load(folder, None, classifier("vit"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_x": np.zeros((2, 4, 4))}, "no pictures with classes"),
        ({"a": np.zeros(2)}, "no pictures with classes"),
        ({"x": np.zeros((2, 4, 4)), "y": np.arange(2)}, "float64 of shape"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8), "y": np.arange(2)}, r"shape \[2, 4, 4, 2\]"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(3)}, "one class number"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(2) / 2}, "one class number"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(2) - 1}, "one class number"),
        (
            {"x": np.zeros((2, 4, 4), np.uint8), "y": np.arange(2), "labels": np.array(["a"])},
            "names 1 classes but uses number 1",
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
        TASK.load(tmp_path / "odd.npz", processor, None)


def test_a_single_array_is_no_npz(tmp_path: Path, processor: Any) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(OffsiteError, match=r"not a readable \.npz file.*numpy\.savez"):
        TASK.load(tmp_path / "one.npz", processor, None)


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
        TASK.load(folder, processor, None)
    assert "secret" not in str(caught.value)
    assert len(ImageClassification(skip_bad=True).load(folder, processor, None)) == 12


def test_pictures_of_several_shapes_are_found_when_they_are_loaded(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    plain = image_processor(do_resize=False)
    assert len(TASK.load(folder, plain, None)) == 12  # all of one size
    Image.new("RGB", (24, 21)).save(folder / "red" / "odd.png")
    message = r"the shape \[3, 20, 24\].*odd\.png' the shape \[3, 21, 24\]; turn on do_resize"
    with pytest.raises(OffsiteError, match=message):
        TASK.load(folder, plain, None)
    TASK.load(folder, image_processor(), None)


def test_hidden_folders_are_no_classes(tmp_path: Path, processor: Any) -> None:
    (tmp_path / "both" / ".ipynb_checkpoints").mkdir(parents=True)
    write_folder(tmp_path).rename(tmp_path / "both" / "train")
    write_folder(tmp_path / "again").rename(tmp_path / "both" / "test")
    assert TASK.load(tmp_path / "both", processor, None).labels == tuple(sorted(NAMES))


def test_foreign_classes_never_reach_the_loss(tmp_path: Path, processor: Any) -> None:
    rows = TASK.load(write_arrays(tmp_path), processor, None)
    with pytest.raises(OffsiteError, match="head has only 2 classes"):
        TASK.loss(classifier("vit", labels=2), TASK.collate([rows[2]]))


def picture_folders(root: Path, *splits: str) -> Path:
    """Two classes of two pictures under each split."""
    for split in splits:
        for shade, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                picture = Image.new("RGB", (20, 24), (90 * shade, 40 * index, len(split)))
                picture.save(root / split / name / f"{index}.png")
    return root


@pytest.mark.parametrize("splits", [("Train", "Test"), ("train", "dev"), ("TRAINING", "Valid")])
def test_splits_have_many_names(splits: tuple[str, str], tmp_path: Path) -> None:
    root = picture_folders(tmp_path, *splits)
    for train, split in zip((True, False), splits, strict=True):
        found = read_pictures(root, train=train)
        assert found.classes == ("cat", "dog") and f"{root / split}" in found.where(0)
        asked = read_pictures(f"{root}:{split.lower()}", train=not train)
        assert asked.where(3) == found.where(3)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_folder_inside_a_class_is_called_one(skip_bad: bool, tmp_path: Path) -> None:
    root = picture_folders(tmp_path, "Fold1", "Fold2")
    task = ImageClassification(skip_bad=skip_bad)
    with pytest.raises(OffsiteError, match=r"Fold1' holds the folder 'cat'.*splits found by"):
        task.read(root, train=True)
    assert task.read(f"{root}:Fold1", train=True).pictures.classes == ("cat", "dog")
    (root / "Fold1" / "cat" / "more").mkdir()
    with pytest.raises(OffsiteError, match="cat' holds the folder 'more' and not only pictures"):
        task.read(f"{root}:Fold1", train=True)


def test_channels_other_than_grey_and_colour_are_named(tmp_path: Path, processor: Any) -> None:
    config = classifier("vit").config
    config.num_channels = 4
    task = ImageClassification()
    with pytest.raises(OffsiteError, match="reads pictures of 4 channels"):
        task.prepare(task.read(write_folder(tmp_path), train=True), processor, config)
