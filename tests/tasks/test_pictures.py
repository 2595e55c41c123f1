"""Pictures from every source: arrays, folders, saved data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from offsite.errors import MissingExtraError, OffsiteError
from offsite.tasks.data import rows_of
from offsite.tasks.image.classification import ImageClassification
from offsite.tasks.image.pictures import read_pictures
from tests.support.pictures import (
    NAMES,
    paint,
    picture_folders,
    write_arrays,
    write_folder,
)

TASK = ImageClassification()


def test_arrays_choose_the_split_and_the_classes(tmp_path: Path, processor: Any) -> None:
    path = write_arrays(tmp_path)
    assert len(rows_of(TASK, path, processor, None, train=True)) == 24
    assert len(rows_of(TASK, path, processor, None)) == 12
    assert len(rows_of(TASK, f"{path}:train", processor, None)) == 24
    some = rows_of(TASK, f"{path}:test:yellow,red", processor, None)
    assert some.labels == ("red", "yellow") and len(some) == 8 and set(some.targets) == {0, 1}
    assert some[0]["pixel_values"].shape == (3, 16, 16)
    assert torch.equal(some[0]["pixel_values"], some[0]["pixel_values"])
    x, y = paint(3, 2, 0)
    np.savez(tmp_path / "plain.npz", x=x[..., :1], y=y + 5)
    rows = rows_of(TASK, tmp_path / "plain.npz", processor, None, train=True)
    assert rows.labels == ("5", "6", "7") and rows.targets == (0, 1, 2, 0, 1, 2)
    with pytest.raises(OffsiteError, match="no class 'blue'; it has red, green, yellow"):
        rows_of(TASK, f"{path}:test:blue", processor, None)
    with pytest.raises(OffsiteError, match=r"no split 'dev'.*one of: test, train"):
        rows_of(TASK, f"{path}:dev", processor, None)


def test_folders_give_the_same_pictures(tmp_path: Path, processor: Any) -> None:
    folder = write_folder(tmp_path)
    rows = rows_of(TASK, folder, processor, None)
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
    assert len(rows_of(TASK, tmp_path / "both", processor, None, train=True)) == 12
    assert len(rows_of(TASK, tmp_path / "both", processor, None)) == 11


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
    rows = rows_of(TASK, tmp_path / "saved", processor, None, train=True)
    assert rows.labels == NAMES and rows.targets == tuple(y)
    first = processor(images=Image.fromarray(x[0]), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(rows[0]["pixel_values"], first)
    with pytest.raises(OffsiteError, match=r"class 'yellow' of .* has no picture"):
        rows_of(TASK, tmp_path / "saved", processor, None)
    data.remove_columns("label").save_to_disk(tmp_path / "bare")
    with pytest.raises(OffsiteError, match="its columns are img"):
        rows_of(TASK, tmp_path / "bare", processor, None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"offsite\[vision\]"):
        rows_of(TASK, tmp_path / "saved", processor, None)


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
        with pytest.raises(
            OffsiteError, match=f"^picture 4 in '.*{name}' has none of the 3 classes"
        ):
            rows_of(TASK, tmp_path / name, processor, None)
    parts = {"img": [*x[:5], None], "label": [0, 1, 2] * 2}
    datasets.Dataset.from_dict(parts, features=features).save_to_disk(tmp_path / "gap")
    with pytest.raises(OffsiteError, match="Cannot read picture 5 in"):
        rows_of(TASK, tmp_path / "gap", processor, None)
    assert len(rows_of(ImageClassification(skip_bad=True), tmp_path / "gap", processor, None)) == 5


@pytest.mark.parametrize("splits", [("Train", "Test"), ("train", "dev"), ("TRAINING", "Valid")])
def test_splits_have_many_names(splits: tuple[str, str], tmp_path: Path) -> None:
    root = picture_folders(tmp_path, *splits)
    for train, split in zip((True, False), splits, strict=True):
        found = read_pictures(root, train=train)
        assert found.classes == ("cat", "dog") and f"{root / split}" in found.where(0)
        asked = read_pictures(f"{root}:{split.lower()}", train=not train)
        assert asked.where(3) == found.where(3)
