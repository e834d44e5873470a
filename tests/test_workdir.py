"""A folder holds one run, is left only if something was written in it, and small files are written whole."""

import os

import pytest

from cse_jax import workdir
from cse_jax.errors import InputError


def test_a_damaged_config_is_named_with_the_remedy(tmp_path):
    for content in (b"", b'{"a": 1', b"[]", b"\xff\xfe"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(workdir.WorkdirError, match=r"config.json is damaged .*; remove it if"):
            workdir.check_same_config(tmp_path, {"a": 1}, remedy="")


def test_settings_that_change_no_result_may_change(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 0, "save_every": 10, "data": {"workers": 0}}')
    workdir.check_same_config(tmp_path, {"seed": 0, "save_every": 0, "data": {"workers": 8}}, remedy="")
    other = {"seed": 1, "save_every": 0, "data": {"workers": 8}}
    with pytest.raises(InputError, match=r"other settings \(config.seed: 0 -> 1\): name it$"):
        workdir.check_same_config(tmp_path, other, remedy="name it")
    workdir.check_same_config(tmp_path, other, remedy="", relevant=lambda config: {"data": config["data"]})


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    workdir.write_whole(tmp_path / "a.json", "before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        workdir.write_whole(tmp_path / "a.json", "after")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.json", "before\n")]
    with pytest.raises(workdir.WorkdirError, match="No space left on device; make room there"):
        workdir.write_description(tmp_path, {"config": {}, "versions": {}, "device": ""})


def test_a_folder_without_anything_written_is_removed_after_an_error(tmp_path):
    for name, written in (("empty", False), ("used", True)):
        with pytest.raises(ValueError, match="wrong"), workdir.opened(tmp_path / name) as folder:
            if written:
                (folder / "config.json").write_text("{}")
            raise ValueError("wrong")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
