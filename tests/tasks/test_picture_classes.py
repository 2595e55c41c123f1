"""Classes of pictures: their order, the head that they get, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offsite.errors import OffsiteError
from offsite.model.heads import attach_head, labels_of
from offsite.tasks.data import rows_of
from offsite.tasks.image.classification import ImageClassification
from tests.support.models import classifier
from tests.support.pictures import (
    NAMES,
    paint,
    picture_folders,
    write_arrays,
    write_folder,
)

TASK = ImageClassification()


def named(*labels: str) -> Any:
    """A model whose head knows these classes."""
    model = classifier("vit", labels=2)
    attach_head(model, labels)
    return model


def test_classes_take_the_order_of_the_model(tmp_path: Path, processor: Any) -> None:
    path = write_arrays(tmp_path)
    rows = rows_of(TASK, path, processor, named("yellow", "red", "green"), train=True)
    assert rows.labels == ("yellow", "red", "green") and rows.targets[:3] == (1, 2, 0)
    few = f"{path}:test:red,green"
    rows = rows_of(TASK, few, processor, named("yellow", "red", "green"))
    assert rows.labels == ("yellow", "red", "green") and set(rows.targets) == {1, 2}
    rows = rows_of(TASK, few, processor, named("yellow", "red", "green"), train=True)
    assert rows.labels == ("red", "green")
    other = named("a", "b", "c")
    rows = rows_of(TASK, path, processor, other)
    with pytest.raises(OffsiteError, match="red, green, yellow, but the model knows a, b, c"):
        TASK.evaluate(other, rows)


def test_a_head_is_kept_for_its_classes_and_zero_for_others() -> None:
    model = classifier("vit", labels=3)
    old = model.classifier.weight
    attach_head(model, NAMES)
    assert model.classifier.weight is not old and torch.equal(model.classifier.weight, old)
    assert labels_of(model) == NAMES and model.config.num_labels == model.num_labels == 3
    attach_head(model, ("0", "1", "2"))
    assert labels_of(model) == NAMES and torch.equal(model.classifier.weight, old)
    attach_head(model, ("a", "b", "c"))
    assert labels_of(model) == ("a", "b", "c") and not model.classifier.weight.any()


def test_classes_of_other_numbers_are_not_taken_for_one_another(
    tmp_path: Path, processor: Any
) -> None:
    x, y = paint(2, 2, 0)
    np.savez(tmp_path / "later.npz", x=x, y=y + 1)
    tuned = named("0", "1")
    rows = rows_of(TASK, tmp_path / "later.npz", processor, tuned)
    with pytest.raises(OffsiteError, match="classes 1, 2, but the model knows LABEL_0, LABEL_1"):
        TASK.evaluate(tuned, rows)
    with pytest.raises(OffsiteError, match="classes 1, 2, but the model knows 2, 3"):
        TASK.evaluate(named("2", "3"), rows)
    np.savez(tmp_path / "plain.npz", x=x, y=y)
    for labels in (("0", "1"), ("LABEL_0", "LABEL_1"), ("cat", "dog")):
        model = named(*labels)
        TASK.evaluate(model, rows_of(TASK, tmp_path / "plain.npz", processor, model))


def test_a_name_that_two_classes_of_the_model_have_is_refused(
    tmp_path: Path, processor: Any
) -> None:
    """As in ImageNet, which has two classes called crane."""
    path, model = write_arrays(tmp_path), named("red", "green", "yellow", "red")
    with pytest.raises(OffsiteError, match="two classes called 'red'"):
        rows_of(TASK, path, processor, model)
    assert rows_of(TASK, f"{path}:test:green,yellow", processor, model).labels[1] == "green"
    rows = rows_of(TASK, path, processor, named("red", "red", "green", "yellow"), train=True)
    assert rows.labels == NAMES  # a head of one's own


def test_empty_and_single_classes_are_refused(tmp_path: Path, processor: Any) -> None:
    folder = write_folder(tmp_path)
    (folder / "blue").mkdir()
    with pytest.raises(OffsiteError, match=r"class 'blue' of .* has no picture"):
        rows_of(TASK, folder, processor, None)
    with pytest.raises(OffsiteError, match="one class 'red'; at least two"):
        rows_of(TASK, f"{write_arrays(tmp_path)}:train:red", processor, None, train=True)
    (tmp_path / "none").mkdir()
    with pytest.raises(OffsiteError, match="has no folders"):
        rows_of(TASK, tmp_path / "none", processor, None)
    with pytest.raises(OffsiteError, match="There is no data file"):
        rows_of(TASK, tmp_path / "missing", processor, None)
    (tmp_path / "a.txt").write_text("red")
    with pytest.raises(OffsiteError, match="does not hold pictures"):
        rows_of(TASK, tmp_path / "a.txt", processor, None)


def test_hidden_folders_are_no_classes(tmp_path: Path, processor: Any) -> None:
    (tmp_path / "both" / ".ipynb_checkpoints").mkdir(parents=True)
    write_folder(tmp_path).rename(tmp_path / "both" / "train")
    write_folder(tmp_path / "again").rename(tmp_path / "both" / "test")
    assert rows_of(TASK, tmp_path / "both", processor, None).labels == tuple(sorted(NAMES))


def test_foreign_classes_never_reach_the_loss(tmp_path: Path, processor: Any) -> None:
    rows = rows_of(TASK, write_arrays(tmp_path), processor, None)
    with pytest.raises(OffsiteError, match="head has only 2 classes"):
        TASK.loss(classifier("vit", labels=2), TASK.collate([rows[2]]))


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
