"""Fetching archives from a local server that behaves, misbehaves and lies."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from bonbid_cases import write_case

from scripts.data.fetching import MANIFEST
from scripts.data.fetching import download as download_patiently
from scripts.data.layout import find_cases
from scripts.runtime.errors import DatasetError

download = partial(download_patiently, pause_s=0.0, timeout_s=10.0)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def cohort_zip(folder: Path, split: str = "Train", cases: int = 2, nested: bool = False) -> bytes:
    source = folder / f"source_{split}"
    first = {"Train": 0, "Val": 100, "Test": 200}[split]
    for number in range(first, first + cases):
        write_case(source, f"MGHNICU_{number:03d}-VISIT_01", split, seed=number)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(source.rglob("*.mha")):
            inner = path.relative_to(source).as_posix()
            file.write(path, f"BONBID2023_{split}/{inner}" if nested else inner)
        file.writestr("__MACOSX/._BONBID2023_Train", b"junk")
    return buffer.getvalue()


class Server:
    """Serves ``files`` by name on a free local port; ``requests`` are the (name, Range) asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True  # honours Range
        self.cut_after: list[int] = []  # bytes after which the next connections end
        self.statuses: list[int] = []  # answers of the next connections, instead of the file
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/files"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        name, wanted = to.path.rpartition("/")[2], to.headers.get("Range")
        self.requests.append((name, wanted))
        if self.statuses:
            return to.send_error(self.statuses.pop(0))
        if name not in self.files:
            return to.send_error(404)
        data, start = self.files[name], 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                to.send_response(416)
                to.send_header("Content-Range", f"bytes */{len(data)}")
                to.send_header("Content-Length", "0")
                to.end_headers()
                return
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            to.send_response(200)
        body = data[start:]
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        to.wfile.write(body[: self.cut_after.pop(0)] if self.cut_after else body)
        to.close_connection = True


@pytest.fixture
def serve() -> Iterator[Callable[[dict[str, bytes]], Server]]:
    servers: list[Server] = []

    def start(files: dict[str, bytes]) -> Server:
        servers.append(Server(files))
        servers[-1].thread.start()
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()
        server.thread.join()


def archives(**data: bytes) -> dict[str, dict[str, str]]:
    return {
        split: {"name": f"BONBID2023_{split.capitalize()}.zip", "sha256": hashlib.sha256(content).hexdigest()}
        for split, content in data.items()
    }


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("nested", [False, True])
def test_fetches_splits_then_does_nothing(
    tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str], nested: bool
) -> None:
    train, val = cohort_zip(tmp_path, "Train", 3, nested), cohort_zip(tmp_path, "Val", 1, nested)
    server = serve({"BONBID2023_Train.zip": train, "BONBID2023_Val.zip": val})
    target, known = tmp_path / "data", archives(train=train, val=val)
    download(target, server.url, known, "train,val", terms="https://example.org/terms")
    assert "https://example.org/terms" in capsys.readouterr().out
    assert leftovers(target) == ["BONBID2023_Train", "BONBID2023_Val"]
    cases = find_cases(target)
    assert [case.split for case in cases] == ["train", "train", "train", "val"]
    assert all(case.adc and case.zadc and case.label for case in cases)
    for path in (tmp_path / "source_Train").rglob("*.mha"):
        assert next(target.rglob(path.name)).read_bytes() == path.read_bytes()
    server.requests.clear()
    download(target, server.url, known, ["train", "val"])
    assert server.requests == []
    assert capsys.readouterr().out.count("already downloaded and verified") == 2
    for content in ("{", "[]", '{"a": 5}', '{"a": ["x", 2]}'):
        (target / "BONBID2023_Train" / MANIFEST).write_text(content)
        with pytest.raises(DatasetError, match="cannot be verified"):
            download(target, server.url, known, ["train", "val"])


def test_resumes_a_cut_connection(tmp_path: Path, serve: Any) -> None:
    data = cohort_zip(tmp_path)
    server = serve({"BONBID2023_Train.zip": data})
    server.cut_after = [len(data) // 2, len(data) // 4]
    download(tmp_path / "data", server.url, archives(train=data), "train")
    first, second = len(data) // 2, len(data) // 2 + len(data) // 4
    assert [wanted for _, wanted in server.requests] == [None, f"bytes={first}-", f"bytes={second}-"]
    assert len(find_cases(tmp_path / "data")) == 2


def test_goes_on_in_a_later_call(tmp_path: Path, serve: Any) -> None:
    data, target = cohort_zip(tmp_path), tmp_path / "data"
    server = serve({"BONBID2023_Train.zip": data})
    server.cut_after = [100] + [0] * 10
    with pytest.raises(DatasetError, match=r"connection ended after 100 of \d+ bytes.*100 bytes are kept"):
        download(target, server.url, archives(train=data), "train", tries=2)
    assert leftovers(target) == [".BONBID2023_Train.zip.part"]
    assert find_cases(target) == []
    server.cut_after = []
    server.requests.clear()
    download(target, server.url, archives(train=data), "train")
    assert server.requests == [("BONBID2023_Train.zip", "bytes=100-")]
    assert leftovers(target) == ["BONBID2023_Train"]


def test_server_that_ignores_ranges(tmp_path: Path, serve: Any) -> None:
    data = cohort_zip(tmp_path)
    server = serve({"BONBID2023_Train.zip": data})
    server.ranges, server.cut_after = False, [len(data) // 2]
    download(tmp_path / "data", server.url, archives(train=data), "train")
    assert len(server.requests) == 2
    assert len(find_cases(tmp_path / "data")) == 2


@pytest.mark.parametrize("extra", [0, 7])
def test_part_file_as_long_as_the_archive_or_longer(tmp_path: Path, serve: Any, extra: int) -> None:
    data, target = cohort_zip(tmp_path), tmp_path / "data"
    target.mkdir()
    (target / ".BONBID2023_Train.zip.part").write_bytes(b"x" * (len(data) + extra))
    server = serve({"BONBID2023_Train.zip": data})
    download(target, server.url, archives(train=data), "train")
    assert len(find_cases(target)) == 2


def test_part_file_of_another_archive_is_fetched_anew(tmp_path: Path, serve: Any) -> None:
    data, target = cohort_zip(tmp_path), tmp_path / "data"
    target.mkdir()
    (target / ".BONBID2023_Train.zip.part").write_bytes(b"x" * 50)
    server = serve({"BONBID2023_Train.zip": data})
    download(target, server.url, archives(train=data), "train")
    assert [wanted for _, wanted in server.requests] == ["bytes=50-", None]


def test_wrong_archive_leaves_nothing(tmp_path: Path, serve: Any) -> None:
    data, target = cohort_zip(tmp_path), tmp_path / "data"
    server = serve({"BONBID2023_Train.zip": data[:-1] + b"?"})
    with pytest.raises(DatasetError, match=f"its SHA-256 is [0-9a-f]{{64}}, not {hashlib.sha256(data).hexdigest()}"):
        download(target, server.url, archives(train=data), "train")
    assert leftovers(target) == []


@pytest.mark.parametrize(("status", "requests"), [(503, 2), (404, 1)])
def test_server_errors(tmp_path: Path, serve: Any, status: int, requests: int) -> None:
    data = cohort_zip(tmp_path)
    server = serve({"BONBID2023_Train.zip": data})
    server.statuses = [status]
    if status == 404:
        with pytest.raises(DatasetError, match="the server answers 404"):
            download(tmp_path / "data", server.url, archives(train=data), "train")
    else:
        download(tmp_path / "data", server.url, archives(train=data), "train")
    assert len(server.requests) == requests


def test_no_network(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    with pytest.raises(DatasetError, match="cannot be fetched: no connection"):
        download(tmp_path / "data", f"http://127.0.0.1:{port}", archives(train=b""), "train", tries=2)


def test_file_addresses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="must start with http"):
        download(tmp_path / "data", f"file://{tmp_path}", archives(train=b""), "train")


def test_too_large_an_archive_is_not_fetched(tmp_path: Path, serve: Any) -> None:
    data = cohort_zip(tmp_path)
    server = serve({"BONBID2023_Train.zip": data})
    with pytest.raises(DatasetError, match="more than the limit of 1000"):
        download(tmp_path / "data", server.url, archives(train=data), "train", max_archive_bytes=1000)
    assert leftovers(tmp_path / "data") == []


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no split training; choose one of train"):
        download(tmp_path, "http://127.0.0.1", archives(train=b""), "training")


def test_full_disk_before_and_while_writing(tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, target = cohort_zip(tmp_path), tmp_path / "data"
    server = serve({"BONBID2023_Train.zip": data})
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
        with pytest.raises(DatasetError, match=r"disk of .* is full"):
            download(target, server.url, archives(train=data), "train")
    assert leftovers(target) == []

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("scripts.data.fetching.write_json", full)
        with pytest.raises(DatasetError, match=r"disk of .* is full"):
            download(target, server.url, archives(train=data), "train")
    assert leftovers(target) == [".BONBID2023_Train.zip.part"]
    server.requests.clear()
    download(target, server.url, archives(train=data), "train")
    assert server.requests == []  # what was fetched was still good
    assert leftovers(target) == ["BONBID2023_Train"]


def test_changed_folder_is_reported_and_left_alone(tmp_path: Path, serve: Any) -> None:
    data, target = cohort_zip(tmp_path), tmp_path / "data"
    server = serve({"BONBID2023_Train.zip": data})
    download(target, server.url, archives(train=data), "train")
    case = find_cases(target)[0]
    assert case.adc is not None
    assert case.label is not None
    content = bytearray(case.adc.read_bytes())
    content[-1] ^= 1
    case.adc.write_bytes(content)
    case.label.unlink()
    with pytest.raises(DatasetError) as error:
        download(target, server.url, archives(train=data), "train")
    assert f"{case.adc} was changed" in str(error.value)
    assert f"{case.label} is missing" in str(error.value)
    assert case.adc.read_bytes() == bytes(content)


def test_folder_of_unknown_origin_is_left_alone(tmp_path: Path, serve: Any) -> None:
    data, target = cohort_zip(tmp_path), tmp_path / "data"
    write_case(target)
    with pytest.raises(DatasetError, match="was not created by this command"):
        download(target, serve({}).url, archives(train=data), "train")
    assert len(find_cases(target)) == 1


def member(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


EVIL = {
    "parent": ([(member("BONBID2023_Train/../../evil.txt"), b"x")], "would be outside"),
    "absolute": ([(member("/tmp/evil.txt"), b"x")], "would be outside"),
    "backslash": ([(member("..\\evil.txt"), b"x")], "would be outside"),
    "drive": ([(member("C:/evil.txt"), b"x")], "would be outside"),
    "link": ([(member("BONBID2023_Train/link", 0o120777), b"/etc/passwd")], "is a link or a device"),
    "device": ([(member("BONBID2023_Train/null", 0o020666), b"")], "is a link or a device"),
    "empty": ([], "it is empty"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_unsafe_archives(tmp_path: Path, serve: Any, kind: str) -> None:
    members, message = EVIL[kind]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for info, content in members:
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    server = serve({"BONBID2023_Train.zip": buffer.getvalue()})
    target = tmp_path / "inner" / "data"
    with pytest.raises(DatasetError, match=message):
        download(target, server.url, archives(train=buffer.getvalue()), "train")
    assert leftovers(target) == [".BONBID2023_Train.zip.part"]
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("damage", ["not a zip", "truncated", "wrong checksum", "lying size"])
def test_damaged_archives(tmp_path: Path, serve: Any, damage: str) -> None:
    data = bytearray(cohort_zip(tmp_path))
    if damage == "not a zip":
        data = bytearray(b"<html>Service unavailable</html>")
    elif damage == "truncated":
        data = data[: len(data) // 2]
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            entry = file.start_dir
        at, size = (16, 4) if damage == "wrong checksum" else (24, 4)  # CRC-32 and size in the central directory
        data[entry + at : entry + at + size] = (12345).to_bytes(4, "little")
    server = serve({"BONBID2023_Train.zip": bytes(data)})
    with pytest.raises(DatasetError, match=r"was fetched to .*\.part, but it"):
        download(tmp_path / "data", server.url, archives(train=bytes(data)), "train")
    assert leftovers(tmp_path / "data") == [".BONBID2023_Train.zip.part"]
