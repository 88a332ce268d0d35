"""A folder is replaced whole or left as it was."""

import os

import pytest

from onesug_lite import folders
from onesug_lite.folders import replacing


def held(root) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def old(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old.txt").write_text("old")
    return tmp_path / "kept"


def test_new_content_takes_the_place_of_the_old(old, tmp_path):
    with replacing(old) as fresh:
        (fresh / "new.txt").write_text((old / "old.txt").read_text() + " and new")  # the old is there meanwhile
    assert held(tmp_path) == {"kept/new.txt": "old and new"}


def test_folders_above_are_made(tmp_path):
    with replacing(tmp_path / "a" / "b") as fresh:
        (fresh / "new.txt").write_text("new")
    assert held(tmp_path) == {"a/b/new.txt": "new"}


def test_an_interrupt_leaves_what_was_there(old, tmp_path):
    with pytest.raises(KeyboardInterrupt), replacing(old) as fresh:
        (fresh / "new.txt").write_text("half")
        raise KeyboardInterrupt
    assert held(tmp_path) == {"kept/old.txt": "old"} and os.listdir(tmp_path) == ["kept"]


def test_a_rename_that_fails_brings_the_old_back(old, tmp_path, monkeypatch):
    rename = os.replace

    def failing(source, target):
        if source.name == "fresh":
            raise OSError("no room")
        rename(source, target)

    monkeypatch.setattr(folders.os, "replace", failing)
    with pytest.raises(OSError, match="no room"), replacing(old) as fresh:
        (fresh / "new.txt").write_text("new")
    assert held(tmp_path) == {"kept/old.txt": "old"} and os.listdir(tmp_path) == ["kept"]
