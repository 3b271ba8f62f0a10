from __future__ import annotations

import errno
import functools
import gc
import http.server
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from data_pipelines import remote_files
from data_pipelines.__main__ import main
from data_pipelines.backends.build import build_pipeline
from data_pipelines.datasets import open_data
from data_pipelines.packed import remote
from data_pipelines.packed.manifest import read_manifest
from data_pipelines.packed.reader import ShardedImages
from data_pipelines.packed.remote import FileCache
from data_pipelines.pipeline import DataConfig, ImageBatch, MixedSet, Share
from data_pipelines.remote_files import Denied, Unreachable, is_remote
from models.safe_files import locks
from tests.data_sets import packed_set, write_class_dirs


class FlakyServer(http.server.SimpleHTTPRequestHandler):
    """Serves a directory; each file fails `failures` times first, then comes cut short once."""

    failures = 0
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        seen = self.requests.count(self.path)
        self.requests.append(self.path)
        if seen < self.failures:
            self.send_error(503)
        elif seen == self.failures and self.failures and self.path.endswith(".tar"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"the beginning only")
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote")
    packed_set(write_class_dirs(path / "source"), path / "set")
    return path / "set"


@pytest.fixture
def server(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote_files, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(FlakyServer, "requests", [])
    handler = functools.partial(FlakyServer, directory=str(dataset.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/set"
        listening.shutdown()
        thread.join()


def delivered(path: str, cache: Path, backend: str = "pillow") -> list[ImageBatch]:
    config = DataConfig(path=path, cache=str(cache), backend=backend, resolution=32, workers=2)
    if not is_remote(path):  # a remote set has the window of its manifest
        config = replace(config, shuffle_window=read_manifest(Path(path)).shuffle_window)
    pipeline = build_pipeline(config, seed=0, share=Share(0, 1, 8))
    batches = pipeline.batches(0)
    try:
        return list(itertools.islice(batches, 9))
    finally:
        batches.close()
        pipeline.close()


def same(one: list[ImageBatch], other: list[ImageBatch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.images, b.images) for a, b in pairs)


@pytest.mark.parametrize("backend", ["pillow", "dali"])
@pytest.mark.parametrize("failures", [0, 2])
def test_web_servers_with_retries(
    dataset: Path,
    tmp_path: Path,
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    failures: int,
) -> None:
    monkeypatch.setattr(FlakyServer, "failures", failures)
    assert same(delivered(server, tmp_path, backend), delivered(str(dataset), tmp_path))
    tars = [path for path in FlakyServer.requests if path.endswith(".tar")]
    assert len(tars) == 4 * (1 if failures == 0 else failures + 2)
    delivered(server, tmp_path, backend)
    assert [path for path in FlakyServer.requests if path.endswith(".tar")] == tars


def test_sets_and_caches_on_file_systems_without_locks(
    dataset: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: object, kind: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    expected = delivered(server, tmp_path / "a")
    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    assert same(delivered(server, tmp_path / "b"), expected)
    images = write_class_dirs(tmp_path / "images", 3)
    packed_set(images, tmp_path / "set")
    assert read_manifest(tmp_path / "set").num_images


@pytest.mark.parametrize("name", ["manifest.json", "index.npy", "shards/000001.tar"])
def test_damaged_transfers_are_tried_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The first transfer of a file ends early, the second is too long, the third is right."""
    monkeypatch.setattr(remote_files, "FIRST_DELAY", 0.01)
    script = tmp_path / "script.sh"
    script.write_text(
        f"""if [ "$1" != "{name}" ]; then exec cat "{dataset}/$1"; fi
        echo >> "{tmp_path}/tries"
        case $(wc -l < "{tmp_path}/tries") in
            1) head -c 1000 "{dataset}/$1" ;;
            2) cat "{dataset}/$1" "{dataset}/$1" ;;
            *) cat "{dataset}/$1" ;;
        esac"""
    )
    delivery = delivered(f"pipe:sh {script} {{}}", tmp_path / "cache")
    assert same(delivery, delivered(str(dataset), tmp_path))
    assert len((tmp_path / "tries").read_text().splitlines()) == 3


def test_endless_files_are_given_up(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_files, "FIRST_DELAY", 0.01)
    url = f"pipe:sh -c 'case {{}} in m*) cat {dataset}/{{}};; *) cat /dev/zero;; esac'"
    with pytest.raises(Unreachable, match=r"index\.npy of .* it has more than the \d+ bytes"):
        ShardedImages(url, cache=FileCache(tmp_path / "cache", 1))


def test_pipes(dataset: Path, tmp_path: Path) -> None:
    url = f"pipe:cat {dataset}/{{}}"
    assert same(delivered(url, tmp_path), delivered(str(dataset), tmp_path))


def test_small_caches_make_room(dataset: Path, tmp_path: Path) -> None:
    size = max(file.stat().st_size for file in dataset.glob("shards/*.tar"))
    cache = FileCache(tmp_path, 2 * size)
    images = ShardedImages(f"pipe:cat {dataset}/{{}}", cache=cache)
    local = ShardedImages(dataset)
    for index in (0, 20, 40, 59, 0):
        assert images.read(index) == local.read(index)
        assert len(list(tmp_path.rglob("*.tar"))) <= 2
    images.close()
    local.close()


def remote_config(dataset: Path, cache: Path, **settings: object) -> DataConfig:
    url = f"pipe:cat {dataset}/{{}}"
    return DataConfig(path=url, cache=str(cache), resolution=32, backend="pillow", **settings)


def cached_shards(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*.tar"))


def wait_for_shards(cache: Path, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(cached_shards(cache)) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(cached_shards(cache)) == count


def test_coming_shards_are_fetched_while_the_first_is_read(dataset: Path, tmp_path: Path) -> None:
    config = remote_config(dataset, tmp_path, shuffle=False)
    pipeline = build_pipeline(config, seed=0, share=Share(0, 1, 4))
    batches = pipeline.batches(0)
    next(batches)
    wait_for_shards(tmp_path, 4)
    batches.close()
    pipeline.close()
    assert not [t for t in threading.enumerate() if t.name == "shard prefetch"]


def test_reading_ahead_fits_the_cache(dataset: Path, tmp_path: Path) -> None:
    """A cache of three shards: two are had ahead, the third place is for the next one."""
    largest = max(shard.num_bytes for shard in read_manifest(dataset).shards)
    config = remote_config(dataset, tmp_path, shuffle=False, cache_gb=3.01 * largest / 1e9)
    data = open_data(config, seed=0)
    assert data.prefetcher is not None
    assert list(data.prefetcher.coming(20)) == [1, 2]
    assert list(data.prefetcher.coming(50)) == [3, 0]
    data.prefetcher.advance(20)
    wait_for_shards(tmp_path, 2)
    assert cached_shards(tmp_path) == ["000001.tar", "000002.tar"]
    data.prefetcher.close()
    data.samples.close()


def test_mixes_are_read_ahead_where_they_are_remote(dataset: Path, tmp_path: Path) -> None:
    packed_set(write_class_dirs(tmp_path / "s"), tmp_path / "local", shard_images=8)
    mix = (MixedSet(path=str(tmp_path / "local")),)
    data = open_data(remote_config(dataset, tmp_path / "cache", mix=mix), seed=0)
    assert data.prefetcher is not None
    assert sorted(data.prefetcher.coming(0)) == list(range(4 + 8))
    assert [data.samples.num_bytes(shard) > 0 for shard in (3, 4)] == [True, False]
    data.prefetcher.advance(0)
    wait_for_shards(tmp_path / "cache", 4)
    data.prefetcher.close()
    data.samples.close()


def test_reading_ahead_leaves_failures_to_the_reader(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        remote_config(dataset, tmp_path, outage_seconds=0.1),
        path=f"pipe:sh -c 'case {{}} in *2.tar) exit 9;; *) cat {dataset}/{{}};; esac'",
    )
    pipeline = build_pipeline(config, seed=0, share=Share(0, 1, 4))
    batches = pipeline.batches(0)
    with pytest.raises(Unreachable, match=r"shards/000002\.tar of .* cannot be read"):
        list(itertools.islice(batches, 60 // 4))
    batches.close()
    pipeline.close()


def test_unreachable_sets_say_so(
    dataset: Path, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Denied, match=r"manifest\.json of .*/nothing cannot be read: .*HTTP 404"):
        ShardedImages(f"{server}/nothing", cache=FileCache(tmp_path, 1))
    with pytest.raises(Unreachable, match="exited with code 3: no such host"):
        ShardedImages(
            "pipe:sh -c 'echo no such host >&2; exit 3' {}", cache=FileCache(tmp_path, 1, 0.1)
        )
    images = ShardedImages(server, cache=FileCache(tmp_path, 1, 0.1))
    monkeypatch.setattr(FlakyServer, "failures", 10**6)
    with pytest.raises(Unreachable, match=r"shards/000000\.tar of .* cannot be read, .*: HTTP 503"):
        images.read(0)


def test_missing_commands_are_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Denied, match="read by the command `rclone`, which is not installed"):
        ShardedImages("pipe:rclone {}", cache=FileCache(tmp_path / "cache", 1))


def test_missing_packages_are_named_with_their_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, url, extra in [
        ("s3fs", "s3://b/set", "s3"),
        ("gcsfs", "gs://b/set", "gcs"),
        ("adlfs", "az://b/set", "azure"),
    ]:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"pip install 'relaywave\[{extra}\]'"):
            ShardedImages(url, cache=FileCache(tmp_path / "cache", 1))


@pytest.mark.parametrize(
    "url",
    [
        "https://ann:s3cret@host/set",
        "s3://s3cret@bucket/set",
        "https://host/set?X-Amz-Signature=s3cret",
        "https://host/set?sv=1&access_token=s3cret",
        "pipe:curl -f https://ann:s3cret@host/set/{}",
        "pipe:curl -f -u ann:s3cret https://host/set/{}",
        "pipe:curl -f --user=ann:s3cret https://host/set/{}",
        "pipe:curl -f -H 'Authorization: Basic s3cret' https://host/set/{}",
        "pipe:curl -f -H 'PRIVATE-TOKEN: s3cret' https://host/set/{}",
        "pipe:curl --oauth2-bearer s3cret https://host/set/{}",
        "pipe:wget --password=s3cret -O- https://host/set/{}",
        "pipe:wget --http-password s3cret -O- https://host/set/{}",
        "pipe:env AWS_SECRET_ACCESS_KEY=s3cret aws s3 cp s3://bucket/set/{} -",
        "pipe:sshpass -p s3cret ssh host cat set/{}",
        "pipe:sh -c 'HF_TOKEN=s3cret hf cat set/{}'",
    ],
)
@pytest.mark.parametrize("place", ["path", "mix"])
def test_credentials_in_urls_are_rejected_and_not_repeated(url: str, place: str) -> None:
    paths = {"path": url} if place == "path" else {"path": "set", "mix": (MixedSet(path=url),)}
    with pytest.raises(ValueError, match="holds a user's name or password") as rejected:
        DataConfig(resolution=8, backend="pillow", **paths)
    assert "s3cret" not in str(rejected.value)


@pytest.mark.parametrize(
    "path",
    [
        "https://host/set@v2",
        "https://host/token/secrets/set",
        "pipe:ssh ann@host cat token set/{}",
        "pipe:curl --fail --silent --netrc https://host/set/{}",
        "pipe:sh -c 'curl -f -H \"Authorization: Bearer $TOKEN\" https://host/set/{}'",
        "pipe:sh -c 'curl -f -u ann:$PASSWORD https://host/set/{}'",
        "pipe:curl -f -H @token.txt https://host/set/{}",
        "/sets/password=12",
    ],
)
def test_commands_that_read_their_secrets_elsewhere_are_accepted(path: str) -> None:
    assert DataConfig(resolution=8, backend="pillow", path=path).path == path


def test_bench_writes_no_secret_into_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "pipe:curl -u ann:s3cret https://host/set/{}", "--workers=1"]) == 2
    assert "s3cret" not in capsys.readouterr().err


def test_commands_that_fall_silent_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "STALL_SECONDS", 0.2)
    with pytest.raises(Unreachable, match=r"`sh -c 'sleep 60' .*` sent nothing for 0\.2 s"):
        ShardedImages("pipe:sh -c 'sleep 60' {}", cache=FileCache(tmp_path, 1, 0.1))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_itself_reads_the_shards(dataset: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    shards = [str(path) for path in sorted(dataset.glob("shards/*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    gc.collect()  # it leaves its files open
    images = ShardedImages(dataset)
    assert len(samples) == len(images)
    for index, sample in enumerate(samples):
        assert (sample["png"], int(sample["cls"])) == images.read(index)
    images.close()


def test_no_lock_stays_in_the_directory_of_temporary_files(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    ShardedImages(server, cache=FileCache(tmp_path / "cache", 10**9)).read(0)
    with pytest.raises(Denied):
        ShardedImages(f"{server}/no", cache=FileCache(tmp_path / "cache", 10**9))
    assert not [*temporary.iterdir()]
