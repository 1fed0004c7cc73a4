"""Secrets that never show themselves, and files that only their owner reads. Requirements 55 and 56."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path

import pytest

from caterwaul.cluster.security.keyring import VARIABLE, from_environment, make_secret, read_secrets, write_secrets
from caterwaul.cluster.security.private_files import Watched, read_private, write_file
from caterwaul.cluster.settings import Settings
from caterwaul.membership.errors import LocalError
from caterwaul.membership.secret import Secret

CANARY = "xK7canary9QpWz31LmNvB-unseen"


def file_with(path: Path, *lines: str, mode: int = 0o600) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(mode)
    return path


class TestSecret:
    def test_it_shows_its_id_and_nothing_else(self) -> None:
        secret = Secret(CANARY.encode())
        for shown in (repr(secret), str(secret), f"{secret}", f"{[secret]}", repr(vars(Settings.of(security={"secret_file": "/x"})))):
            assert CANARY not in shown
        assert secret.id.hex() in repr(secret)

    def test_it_does_not_travel(self) -> None:
        secret = Secret(CANARY.encode())
        for act in (lambda: pickle.dumps(secret), lambda: copy.copy(secret), lambda: copy.deepcopy(secret), lambda: json.dumps(secret), lambda: vars(secret)):
            with pytest.raises(TypeError) as caught:
                act()
            assert CANARY not in str(caught.value)

    def test_keys_for_two_purposes_are_not_alike(self) -> None:
        secret = Secret(CANARY.encode())
        keys = {secret.derive(salt, info, 32) for salt in (b"", b"1") for info in (b"a", b"b")}
        assert len(keys) == 4

    def test_a_short_one_is_refused(self) -> None:
        with pytest.raises(LocalError, match="at least 16 bytes"):
            Secret(b"x" * 15)


class TestKeyring:
    def test_a_file_holds_one_a_line_the_one_to_use_first(self, tmp_path: Path) -> None:
        first, second = make_secret(), make_secret()
        path = file_with(tmp_path / "secret", "# shop, since May", first, "", f"  {second}  ")
        assert [found.id for found in read_secrets(path)] == [Secret(first.encode()).id, Secret(second.encode()).id]

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o644])
    def test_a_file_that_others_can_read_is_refused(self, tmp_path: Path, mode: int) -> None:
        path = file_with(tmp_path / "secret", make_secret(), mode=mode)
        with pytest.raises(LocalError, match=f"has mode {mode:04o}, so others of this machine can use it: chmod 600"):
            read_secrets(path)

    @pytest.mark.parametrize(
        "text",
        [
            "change-me-please-now", "ChangeMe1234567890", "secretsecretsecret", "password12345678", "example-secret-of-the-manual",
            "your-secret-goes-here", "0123456789abcdef0123", "caterwaul-caterwaul", "aaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababab",
        ],
    )  # fmt: skip
    def test_an_example_is_refused_and_not_repeated(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(LocalError, match="line 1: this is an example or a pattern") as caught:
            read_secrets(file_with(tmp_path / "secret", text))
        assert text not in str(caught.value)

    def test_a_short_one_is_named_by_its_line_only(self, tmp_path: Path) -> None:
        with pytest.raises(LocalError, match="line 2: a secret of 12 bytes: at least 16") as caught:
            read_secrets(file_with(tmp_path / "secret", make_secret(), "k3V9wQ1x7LpZ"))
        assert "k3V9" not in str(caught.value)

    @pytest.mark.parametrize(("lines", "text"), [((), "has no secret in it"), (tuple(make_secret() for _ in range(9)), "has 9 secrets; at most 8")])
    def test_none_and_too_many_are_refused(self, tmp_path: Path, lines: tuple[str, ...], text: str) -> None:
        with pytest.raises(LocalError, match=text):
            read_secrets(file_with(tmp_path / "secret", *lines))

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LocalError, match="No such file"):
            read_secrets(tmp_path / "secret")

    def test_the_environment_will_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert from_environment() == []
        monkeypatch.setenv(VARIABLE, f"{CANARY} {make_secret()}")
        assert from_environment()[0].id == Secret(CANARY.encode()).id
        monkeypatch.setenv(VARIABLE, "short")
        with pytest.raises(LocalError, match="CATERWAUL_SECRET"):
            from_environment()

    def test_what_is_made_is_accepted_and_new_each_time(self, tmp_path: Path) -> None:
        made = {make_secret() for _ in range(100)}
        assert len(made) == 100
        for text in made:
            assert len(text) == 43
            read_secrets(file_with(tmp_path / "secret", text))


class TestPrivateFiles:
    def test_a_file_is_written_for_its_owner_only_and_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        write_file(path, b"1")
        assert (path.stat().st_mode & 0o777, path.read_bytes()) == (0o600, b"1")
        write_file(path, b"2")
        with pytest.raises(LocalError, match="is there already"):
            write_file(path, b"3", replace=False)
        assert path.read_bytes() == b"2"
        assert os.listdir(tmp_path) == ["key"], "nothing is left aside"

    def test_what_is_too_long_is_no_key(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        write_file(path, b"x" * (1 << 20) + b"x")
        with pytest.raises(LocalError, match="longer than"):
            read_private(path, "the key")

    def test_a_directory_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LocalError, match="cannot be written: No such file"):
            write_secrets(tmp_path / "none" / "secret", [make_secret()], replace=False)

    def test_a_change_is_seen_once(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        watched = Watched(path)
        assert not watched.has_changed()
        write_file(path, b"1")
        assert (watched.has_changed(), watched.has_changed()) == (True, False)
        write_file(path, b"2")
        assert watched.has_changed()
        path.unlink()
        assert (watched.has_changed(), watched.has_changed()) == (True, False)
