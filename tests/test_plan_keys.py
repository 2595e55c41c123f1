"""A cached cell must not outlive what it was made from."""

from __future__ import annotations

from pathlib import Path

from offsite.compress import LayerReplace
from offsite.plan import Recipe
from offsite.tasks import source_identity


def test_a_learned_folder_counts_by_what_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "learned"
    folder.mkdir()
    recipe = Recipe((LayerReplace(alpha=0.5, learned=str(folder)),), "ends:2,2")
    (folder / "learned.json").write_text("{}", encoding="utf-8")
    before = recipe.key(0)
    (folder / "learned.json").write_text("{ }", encoding="utf-8")
    assert recipe.key(0) != before
    assert str(folder) not in str(before)


def test_a_folder_of_pictures_counts_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    before = source_identity(tmp_path)
    (tmp_path / "cat" / "1.png").write_bytes(b"1")
    assert source_identity(tmp_path) != before
