"""Labelled pictures from a folder, a saved ``datasets`` folder or an ``.npz`` file.

A source is ``PATH``, ``PATH:SPLIT`` or ``PATH:SPLIT:CLASS,CLASS``, such as
``cifar10.npz:test:5,6,7,8,9``; an empty split is chosen by what the pictures are for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from offsite.errors import MissingExtraError, OffsiteError
from offsite.files import shown
from offsite.model.heads import repeated
from offsite.tasks.source import Source

TRAIN = ("train", "training")
EVAL = ("test", "testing", "validation", "val", "valid", "eval", "dev")
LABEL_COLUMNS = ("label", "labels", "fine_label")
NAMES = ("labels", "label_names", "classes")


@dataclass(frozen=True)
class Pictures:
    """Pictures with a class each, read one at a time.

    Attributes:
        classes: names of the classes, in the order of the source.
        targets: for each picture, the index of its class.
        read: index to a Pillow image, decoded.
        where: index to how messages call a picture: its file, or its number in a file.
    """

    classes: tuple[str, ...]
    targets: tuple[int, ...]
    read: Callable[[int], Any]
    where: Callable[[int], str]

    def select(self, chosen: Sequence[int]) -> Pictures:
        """Some of the pictures, by index."""
        return replace(
            self,
            targets=tuple(self.targets[i] for i in chosen),
            read=lambda i: self.read(chosen[i]),
            where=lambda i: self.where(chosen[i]),
        )

    def only(self, names: Sequence[str], source: str) -> Pictures:
        """The pictures of some classes, which keep the order of the source.

        Raises:
            OffsiteError: a class that the source lacks.
        """
        if lacking := [name for name in names if name not in self.classes]:
            raise OffsiteError(
                f"'{source}' has no class '{lacking[0]}'; it has {shown_names(self.classes)}."
            )
        kept = [name for name in self.classes if name in names]
        chosen = [i for i, t in enumerate(self.targets) if self.classes[t] in names]
        few = self.select(chosen)
        targets = tuple(kept.index(self.classes[t]) for t in few.targets)
        return replace(few, classes=tuple(kept), targets=targets)


def read_pictures(source: str | Path, *, train: bool) -> Pictures:
    """Open a source; pictures themselves are read when they are asked for.

    Raises:
        OffsiteError: a missing source, split or class, an empty class, or arrays that are not
            pictures with class numbers.
    """
    path, split, names = parse_source(source)
    if path.is_file() and path.suffix.lower() == ".npz":
        pictures = from_arrays(path, split, train)
    elif path.is_dir() and any(
        (path / name).exists() for name in ("dataset_dict.json", "dataset_info.json")
    ):
        pictures = from_datasets(path, split, train)
    elif path.is_dir():
        pictures = from_folder(path, split, train)
    else:
        raise OffsiteError(
            f"'{path}' does not hold pictures; give a folder with one folder per class, a saved "
            "datasets folder, or an .npz file."
        )
    if not pictures.targets and not pictures.classes:
        raise OffsiteError(f"'{path}' holds no picture; give a source that has some.")
    if twice := repeated(pictures.classes):
        raise OffsiteError(
            f"'{path}' names two classes '{shown(min(twice))}'; give each class a name of its own."
        )
    check_targets(pictures)
    if names:
        pictures = pictures.only(names, str(path))
    filled = set(pictures.targets)
    if empty := [c for i, c in enumerate(pictures.classes) if i not in filled]:
        raise OffsiteError(
            f"The class '{empty[0]}' of '{path}' has no picture; add some or remove the class."
        )
    return pictures


def check_targets(pictures: Pictures) -> None:
    """Refuse a picture without a class; test sets that hide their answers call it -1 or nothing."""
    for index, target in enumerate(pictures.targets):
        if target is None or not 0 <= target < len(pictures.classes):
            raise OffsiteError(
                f"{pictures.where(index)} has none of the {len(pictures.classes)} classes; remove "
                "pictures without a label, or use another split."
            )


def parse_source(source: str | Path) -> tuple[Path, str, tuple[str, ...]]:
    """Path, split (may be empty) and class names (none for all) of a source."""
    found = Source.of(source)
    split, _, names = found.part.partition(":")
    return found.path, split, tuple(name for name in names.replace(":", ",").split(",") if name)


def pick_split(found: Sequence[str], asked: str, train: bool, path: Path) -> str:
    """The split asked for, else the one of the right kind, else the only one there is.

    Capitals do not count, except where two splits differ by them alone.

    Raises:
        OffsiteError: none fits, with the splits to choose from.
    """
    fitting = [s for kind in (TRAIN if train else EVAL) for s in found if s.lower() == kind]
    if asked in found:
        return asked
    if asked and len(same := [s for s in found if s.lower() == asked.lower()]) == 1:
        return same[0]
    if not asked and fitting:
        return fitting[0]
    if not asked and len(found) == 1:
        return found[0]
    wanted = f"split '{asked}'" if asked else f"split for {'tuning' if train else 'scoring'}"
    raise OffsiteError(
        f"'{path}' has no {wanted}; write '{path}:SPLIT' with one of: {', '.join(sorted(found))}."
    )


def from_folder(path: Path, split: str, train: bool) -> Pictures:
    """One folder per class, by itself or under ``train`` and ``test``."""
    classes = folders(path)
    if split or (classes and all(name.lower() in TRAIN + EVAL for name in classes)):
        path = path / pick_split(classes, split, train, path)
        classes = folders(path)
    files, targets = [], []
    for target, name in enumerate(classes):
        if deeper := folders(path / name):
            raise OffsiteError(
                f"The folder '{path / name}' holds the folder '{shown(deeper[0])}' and not only "
                f"pictures; put the pictures of a class directly into its folder, or, if "
                f"'{shown(name)}' is a split, write '{path}:{shown(name)}' (splits found by "
                f"themselves are {', '.join(TRAIN + EVAL)})."
            )
        inside = [f for f in sorted((path / name).iterdir()) if not f.name.startswith(".")]
        files += inside
        targets += [target] * len(inside)
    if not classes:
        raise OffsiteError(f"'{path}' has no folders; put the pictures of each class in its own.")

    def read(index: int) -> Any:
        return pillow().open(io.BytesIO(files[index].read_bytes()))

    return Pictures(tuple(classes), tuple(targets), read, lambda i: f"'{files[i]}'")


def folders(path: Path) -> list[str]:
    """Names of the folders in a folder, in order; hidden ones are left out."""
    return sorted(f.name for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))


def from_arrays(path: Path, split: str, train: bool) -> Pictures:
    """``x`` (pictures) and ``y`` (class numbers), or ``train_x``, ``train_y``, ``test_x`` ...

    ``x`` is uint8 of shape (n, height, width) or (n, height, width, channels); ``y`` is (n). Names
    of the classes may be in ``labels``; otherwise a class is called by its number.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = [
                key[:-1].removesuffix("_")
                for key in file.files
                if key in ("x",) or key.endswith("_x")
            ]
            chosen = pick_split(found, split, train, path) if found else ""
            stem = f"{chosen}_" if chosen else ""
            if f"{stem}x" not in file.files or f"{stem}y" not in file.files:
                raise OffsiteError(
                    f"'{path}' holds the arrays {shown_names([shown(k) for k in file.files])}; it "
                    "needs train_x and train_y (test_x, test_y), or x and y."
                )
            x, y = file[f"{stem}x"], file[f"{stem}y"]
            texts = next((file[key] for key in NAMES if key in file.files), None)
    except OffsiteError:
        raise
    except Exception as error:  # a single array, damaged or encrypted parts: all differ
        raise OffsiteError(
            f"'{path}' is not a readable .npz file of plain arrays; write it with numpy.savez."
        ) from error
    shaped = x.ndim in (3, 4) and 0 not in x.shape[1:] and x.shape[3:] in ((), (1,), (3,), (4,))
    if x.dtype != np.uint8 or not shaped:
        raise OffsiteError(
            f"The pictures of '{path}' are {x.dtype} of shape {list(x.shape)}; they must be uint8 "
            "of shape (n, height, width) or (n, height, width, 1, 3 or 4)."
        )
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or y.min(initial=0) < 0:
        raise OffsiteError(
            f"The classes of '{path}' are {y.dtype} of shape {list(y.shape)} for {len(x)} pictures"
            "; they must be whole numbers from 0, one for each picture, in an array of shape (n)."
        )
    if texts is not None and texts.ndim != 1:
        raise OffsiteError(
            f"'{path}' names its classes in an array of shape {list(texts.shape)}; it must be a "
            "list with one name for each class."
        )
    numbers = np.unique(y)
    names = [str(n) for n in numbers] if texts is None else [str(text) for text in texts]
    if texts is not None and len(names) <= y.max(initial=0):
        raise OffsiteError(f"'{path}' names {len(names)} classes but uses number {y.max()}.")
    targets = np.searchsorted(numbers, y) if texts is None else y
    image = pillow()

    def read(index: int) -> Any:
        pixels = x[index]
        return image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)

    where = f"{stem}x of '{path}'"
    return Pictures(
        tuple(names), tuple(targets.tolist()), read, lambda i: f"picture {i} in {where}"
    )


def from_datasets(path: Path, split: str, train: bool) -> Pictures:
    """A folder written by ``datasets``' ``save_to_disk``, with an image and a class column."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "vision", "Reading a saved datasets folder") from error
    try:
        data = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise OffsiteError(f"'{path}' is not a readable datasets folder.") from error
    if isinstance(data, datasets.DatasetDict):
        data = data[pick_split(list(data), split, train, path)]
    images = [k for k, feature in data.features.items() if isinstance(feature, datasets.Image)]
    labels = [k for k, f in data.features.items() if isinstance(f, datasets.ClassLabel)]
    labels.sort(key=lambda k: LABEL_COLUMNS.index(k) if k in LABEL_COLUMNS else len(LABEL_COLUMNS))
    if not images or not labels:
        raise OffsiteError(
            f"'{path}' needs a column of pictures and one of classes (features Image and "
            f"ClassLabel); its columns are {', '.join(data.column_names)}."
        )
    column, target = images[0], labels[0]
    return Pictures(
        tuple(data.features[target].names),
        tuple(data[target]),
        lambda index: data[index][column],
        lambda index: f"picture {index} in '{path}'",
    )


def shown_names(names: Sequence[str]) -> str:
    """A few class names for a message."""
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def pillow() -> Any:
    """The ``PIL.Image`` module.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "vision", "Reading pictures") from error
    return Image
