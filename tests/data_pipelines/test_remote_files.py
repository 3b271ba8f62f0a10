"""Object stores and web servers that fail in every way, on this machine."""

from __future__ import annotations

import errno
import http.server
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from data_pipelines import remote_files
from data_pipelines.backends.build import build_pipeline
from data_pipelines.packed import remote
from data_pipelines.packed.manifest import read_manifest
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.packed.remote import FileCache
from data_pipelines.pipeline import DataConfig, Share
from data_pipelines.remote_files import Denied, RemoteStream, Unreachable, cause
from tests.data_sets import packed_set, write_class_dirs

LARGE = 10**9


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote")
    packed_set(write_class_dirs(path / "source"), path / "set", resolution=16)
    return path / "set"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote_files, "FIRST_DELAY", 0.02)


class FaultyServer(http.server.BaseHTTPRequestHandler):
    """Serves a directory; `fault` says how the next requests for shards fail, one after another."""

    root: ClassVar[Path]
    faults: ClassVar[list[str]] = []
    asked: ClassVar[list[tuple[str, str]]] = []
    ranges: ClassVar[bool] = True

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.asked.append((self.path.rpartition("/")[2], wanted))
        fault = self.faults.pop(0) if self.faults and self.path.endswith(".tar") else ""
        if fault.isdecimal():
            self.send_error(int(fault))
            return
        content = (self.root / self.path.lstrip("/")).read_bytes()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        self.send_response(206 if start else 200)
        content = content[start:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "garbled":
            content = bytes(len(content))
        if fault in ("breaks off", "stalls"):
            content = content[: len(content) // 2]
        self.wfile.write(content)
        if fault in ("breaks off", "stalls"):
            self.wfile.flush()
            time.sleep(1.0 if fault == "stalls" else 0.2)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(FaultyServer, "root", dataset.parent, raising=False)
    monkeypatch.setattr(FaultyServer, "faults", [])
    monkeypatch.setattr(FaultyServer, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FaultyServer) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/set"
        listening.shutdown()
        thread.join()


def read_all(url: str | Path, cache: FileCache | None = None) -> list[tuple[bytes, int | None]]:
    images = ShardedImages(url, cache=cache) if cache else ShardedImages(url)
    found = [images.read(index) for index in range(len(images))]
    images.close()
    return found


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["breaks off", "garbled", "stalls", "503"])
def test_faulty_web_servers_deliver_in_the_end(
    dataset: Path,
    tmp_path: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    ranges: bool,
) -> None:
    monkeypatch.setattr(FaultyServer, "ranges", ranges)
    monkeypatch.setattr(remote_files, "STALL_SECONDS", 0.3)
    fsspec.filesystem("http").clear_instance_cache()
    FaultyServer.faults[:] = [fault, fault]
    assert read_all(server, FileCache(tmp_path, LARGE)) == read_all(dataset)
    asked = [wanted for name, wanted in FaultyServer.asked if name == "000000.tar"]
    resumed = [wanted for wanted in asked if wanted]
    assert bool(resumed) == (fault in ("breaks off", "stalls")), "from where it broke off"


def test_a_server_that_is_away_for_a_while_is_waited_for(
    dataset: Path, tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    images = ShardedImages(server, cache=FileCache(tmp_path, LARGE, 60.0))
    FaultyServer.faults[:] = ["503"] * 4
    assert images.read(0) == ShardedImages(dataset).read(0)
    lines = [line for line in caplog.messages if "trying again in" in line]
    assert len(lines) == 4
    assert all("HTTP 503" in line and "shards/000000.tar" in line for line in lines)
    images.close()


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_what_is_denied_is_said_at_once(tmp_path: Path, server: str, code: int) -> None:
    images = ShardedImages(server, cache=FileCache(tmp_path, LARGE))
    FaultyServer.faults[:] = [str(code)] * 99
    with pytest.raises(Denied, match=rf"shards/000000\.tar of {server} .*HTTP {code}"):
        images.read(0)
    assert len(FaultyServer.faults) == 98
    assert Denied.exit_code == 2


def test_the_outage_budget_ends(tmp_path: Path, server: str) -> None:
    images = ShardedImages(server, cache=FileCache(tmp_path, LARGE, 0.2))
    FaultyServer.faults[:] = ["503"] * 9999
    with pytest.raises(Unreachable, match=r"cannot be read, for 0\.2 s now: HTTP 503") as spent:
        images.read(0)
    assert spent.value.exit_code == 74


def test_a_complete_cache_works_offline(
    dataset: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileCache(tmp_path, LARGE, 600.0)
    monkeypatch.setattr(remote, "FRESH_SECONDS", 0.0)
    expected = read_all(server, cache)
    assert expected == read_all(dataset)
    asked = len(FaultyServer.asked)
    monkeypatch.setattr(FaultyServer, "do_GET", lambda handler: handler.send_error(503))
    assert read_all(server, cache) == expected
    assert len(FaultyServer.asked) == asked
    next(tmp_path.rglob("000001.tar")).unlink()
    with pytest.raises(Unreachable, match=r"manifest\.json of"):
        read_all(server, FileCache(tmp_path, LARGE, 0.1))


def test_ranks_of_a_machine_download_manifest_and_index_once(tmp_path: Path, server: str) -> None:
    config = DataConfig(
        path=server, cache=str(tmp_path), resolution=16, backend="pillow", shuffle=False
    )
    for rank in range(4):
        pipeline = build_pipeline(config, seed=0, share=Share(rank, 4, 15))
        batches = pipeline.batches(0)
        next(batches)
        batches.close()
        pipeline.close()
    names = [name for name, _ in FaultyServer.asked]
    shards = [f"{number:06d}.tar" for number in range(4)]
    assert sorted(names) == [*shards, "index.npy", "manifest.json"]


def test_a_damaged_shard_in_the_cache_is_fetched_again(
    dataset: Path, tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FileCache(tmp_path, LARGE)
    expected = read_all(server, cache)
    shard = next(tmp_path.rglob("000001.tar"))
    content = shard.read_bytes()
    shard.write_bytes(content[:2000] + bytes(4000) + content[6000:])
    assert read_all(server, cache) == expected
    assert shard.read_bytes() == content
    assert [
        line for line in caplog.messages if "damaged in the cache, and downloaded again" in line
    ]


def test_a_full_disk_makes_room(
    dataset: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk holds two shards; the cache was allowed more."""
    plain = remote.RemoteSet._copy

    def copy(self: remote.RemoteSet, name: str, *arguments: object) -> str:
        if name.endswith(".tar") and len(list(tmp_path.rglob("*.tar"))) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))
        return plain(self, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(remote.RemoteSet, "_copy", copy)
    assert read_all(server, FileCache(tmp_path, LARGE)) == read_all(dataset)
    assert len(list(tmp_path.rglob("*.tar"))) == 2


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    facts = {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word", "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "no_proxy": "*",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in facts.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "bucket"
    server.stop()


def upload(bucket: str, directory: Path, name: str) -> str:
    store = fsspec.filesystem("s3")
    for file in directory.rglob("*"):
        if file.is_file():
            store.pipe_file(
                f"{bucket}/{name}/{file.relative_to(directory).as_posix()}", file.read_bytes()
            )
    return f"s3://{bucket}/{name}"


def test_object_stores(dataset: Path, tmp_path: Path, bucket: str) -> None:
    """A packed set, its tars as a WebDataset, and what is not there, on a server of S3."""
    url = upload(bucket, dataset, "set")
    assert read_all(url, FileCache(tmp_path, LARGE)) == read_all(dataset)
    shards = len(read_manifest(dataset).shards)
    for path in (f"{url}/shards/{{000000..{shards - 1:06d}}}.tar", f"{url}/shards/*.tar"):
        config = DataConfig(
            path=path, backend="webdataset", resolution=16, num_classes=3, shuffle=False
        )
        batches = build_pipeline(config, seed=0, share=Share(0, 1, 20)).batches(0)
        labels = [batch.labels.tolist() for batch in itertools.islice(batches, 3)]  # type: ignore
        batches.close()
        assert labels == [[0] * 20, [1] * 20, [2] * 20]
    for gone in (f"s3://{bucket}/nothing", "s3://no-bucket/set"):
        with pytest.raises(Denied, match=r"manifest\.json of .*HTTP 404"):
            ShardedImages(gone, cache=FileCache(tmp_path, LARGE))
    stream = RemoteStream(f"{url}/shards/000000.tar", 1.0)
    assert stream.read(100) + stream.readall() == (dataset / "shards/000000.tar").read_bytes()


def test_causes_have_the_code_of_every_library() -> None:
    class Boto(Exception):  # noqa: N818
        response: ClassVar = {"ResponseMetadata": {"HTTPStatusCode": 503}}

    class Azure(Exception):  # noqa: N818
        status_code = 500
        message = "the server is busy"

    wrapped = OSError("slow down")
    wrapped.__cause__ = Boto()
    assert cause(wrapped) == "HTTP 503 (slow down)"
    assert cause(Azure()) == "HTTP 500 (the server is busy)"
    assert cause(TimeoutError()).startswith("nothing was received")
    assert cause(OSError()) == "OSError"
