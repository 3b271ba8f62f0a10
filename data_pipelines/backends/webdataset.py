"""Any WebDataset, one's own or foreign, streamed through the `webdataset` library."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch

from data_pipelines.backends.batches import BatchFinisher, Delivery, run_ahead, to_device
from data_pipelines.backends.sample_reader import CorruptBudget
from data_pipelines.backends.shard_counts import ShardCounts
from data_pipelines.backends.streams import Stream, StreamOrder
from data_pipelines.images import ORIGINAL, BadImage, Pixels, pixel_decoder
from data_pipelines.packed.manifest import DatasetError, DatasetInfo
from data_pipelines.pipeline import DataConfig, ImageBatch
from data_pipelines.remote_files import (
    BLOCK,
    Outage,
    RemoteStream,
    cause,
    is_remote,
    raise_if_denied,
)
from data_pipelines.sample_order import SampleOrder
from data_pipelines.shard_urls import PIPE, expand
from models.safe_files.documents import canonical_json
from models.safe_files.transient import is_transient

IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "bmp")
"""Endings of the member of a sample that is its image."""
WINDOW = 4096
"""Samples of all streams together that are shuffled with each other, by default."""
SHARD_NUMBERS = 1 << 32
"""A sample's number is its shard's times this, plus its place in the shard."""
DAMAGE = (tarfile.TarError, EOFError, zlib.error)
DAMAGED_TRANSFERS = 3
"""A remote tar that arrives damaged so often is damaged where it is."""


class Sample(NamedTuple):
    """What a tar holds of a sample: its number, its name, and the content of its members."""

    number: int
    key: str
    members: Mapping[str, bytes]


class WebDatasetPipeline:
    """One rank's share of the streams of a WebDataset; an ImagePipeline.

    Args:
        config: Its settings.
        seed: The run's seed.
        delivery: How batches are delivered.
        records: Directory for the index that the first pass builds; None keeps it in memory.

    Raises:
        ValueError: The library is not installed, the path names no tars, or a setting is for
            packed sets only.
    """

    def __init__(
        self, config: DataConfig, seed: int, delivery: Delivery, records: Path | None
    ) -> None:
        import_webdataset()
        self._urls, self._delivery = expand(config.path), delivery
        self._outage_seconds = config.outage_seconds
        self._order = _order(config, self._urls, delivery.share.global_batch, seed)
        self.info = describe_webdataset(config, delivery.share.global_batch)
        self._label = _label_reader(config)
        self._decode = pixel_decoder(ORIGINAL, config.resolution, config.resize)
        self._finish = BatchFinisher(SampleOrder(1, seed, flip=config.flip), self.info)
        file = records and records / f"webdataset-{self.info.digest[:16]}.counts"
        self._counts = ShardCounts(file)
        self._budget = CorruptBudget(delivery.max_corrupt, config.path)
        self.corrupt = self._budget.corrupt

    def batches(self, start: int) -> Iterator[ImageBatch]:
        """Yield this rank's micro-batches, endlessly, from global position `start`."""
        delivery = self._delivery
        readers = ThreadPoolExecutor(delivery.workers, thread_name_prefix="webdataset")
        jobs = self._jobs(start, readers)
        try:
            yield from run_ahead(jobs, delivery.workers, delivery.prefetch)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            jobs.close()

    def close(self) -> None:
        """Nothing is open between batches."""

    def _jobs(self, start: int, readers: Executor) -> Generator[Callable[[], ImageBatch]]:
        """Yield the decoding of each micro-batch, whose samples are at hand."""
        streams: dict[int, Stream[Sample]] = {}
        k = 0
        while True:
            positions, taken = self._delivery.share.positions(start, k), []
            for position in positions:
                number, element = self._order.place(position)
                if number not in streams:
                    streams[number] = Stream(
                        self._order, number, element, self._read, self._count, readers
                    )
                taken.append(streams[number].take(element))
            yield functools.partial(self._batch, positions, taken)
            k += 1

    def _batch(self, positions: range, taken: Sequence[tuple[list[Sample], int]]) -> ImageBatch:
        loaded = [self._load(window, place) for window, place in taken]
        pixels = np.stack([image for image, _ in loaded])
        images = to_device(torch.from_numpy(pixels), self._delivery.device)
        return self._finish(images, [label for _, label in loaded], positions)

    def _load(self, window: Sequence[Sample], place: int) -> tuple[Pixels, int]:
        """Return a sample's image and label; the next of the window replaces a damaged one."""
        self._budget.seen += 1
        where = ""
        for sample in (*window[place:], *window[:place]):
            try:
                return self._decode(_image(sample)), self._label(sample)
            except BadImage as error:
                where = f"{sample.key} of {self._urls[sample.number // SHARD_NUMBERS]}"
                self._budget.record(sample.number, str(error), where)
        raise DatasetError(
            f"{len(window)} samples in a row of {self._urls[window[0].number // SHARD_NUMBERS]}"
            f" are of no use; the last: {where}: {self._budget.corrupt[sample.number]}"
        )

    def _read(self, shard: int, first: int) -> Iterator[Sample]:
        """Yield the samples of a shard from a number on; what fails for a while is tried again.

        Raises:
            DatasetError: The tar is damaged, or holds no samples.
            Unreachable: It cannot be read within the outage budget.
        """
        url = self._urls[shard]
        outage = Outage(url, self._outage_seconds)
        done = damaged = 0
        while True:
            try:
                for number, sample in enumerate(read_samples(url, self._outage_seconds)):
                    if number < done:  # delivered before the tar was opened again
                        continue
                    done += 1
                    outage.end()
                    if number >= first:
                        members = {k: v for k, v in sample.items() if not k.startswith("__")}
                        yield Sample(shard * SHARD_NUMBERS + number, sample["__key__"], members)
                break
            except Exception as error:
                damaged += isinstance(error, DAMAGE)
                if damaged > DAMAGED_TRANSFERS or not _may_pass(url, error):
                    raise _as_ours(url, error) from None
                raise_if_denied(url, error)
                outage.wait(cause(error))
        if not done:
            raise DatasetError(f"{url} holds no samples; leave it out of data.path")
        self._counts.record(shard, done)

    def _count(self, shard: int) -> int:
        """Return how many samples a shard holds; it is read if this is not known."""
        while (known := self._counts.get(shard)) is None:
            for _ in self._read(shard, SHARD_NUMBERS):
                pass
        return known


def import_webdataset() -> Any:
    """Return the library. Raises ValueError, saying what to install, if it is missing."""
    try:
        import webdataset
    except ImportError:
        raise ValueError(
            "backend='webdataset' needs the library: pip install 'relaywave[webdataset]'"
        ) from None
    return webdataset


def read_samples(url: str, outage_seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the samples of a tar as the library groups them, members by their endings.

    Args:
        url: A file, a URL, or `pipe:COMMAND`.
        outage_seconds: How long to try where a URL does not answer.
    """
    webdataset = import_webdataset()
    with _open(url, outage_seconds) as stream:
        files = webdataset.tariterators.tar_file_expander([{"url": url, "stream": stream}])
        yield from webdataset.tariterators.group_by_keys(files)


def _open(url: str, outage_seconds: float) -> IO[bytes]:
    if is_remote(url) and not url.startswith(PIPE):
        return cast(IO[bytes], io.BufferedReader(RemoteStream(url, outage_seconds), BLOCK))
    return cast(IO[bytes], import_webdataset().gopen(url))


def _may_pass(url: str, error: Exception) -> bool:
    """Return whether a tar may be readable a moment later."""
    return is_remote(url) or (isinstance(error, OSError) and is_transient(error))


def _as_ours(url: str, error: Exception) -> Exception:
    """Return what is wrong with a tar, as an error that says so."""
    if isinstance(error, DAMAGE):
        return DatasetError(f"{url} is no tar, or damaged ({error}); copy it again")
    if isinstance(error, OSError):
        return DatasetError(f"{url} cannot be read: {error.strerror or error}")
    return error


def describe_webdataset(config: DataConfig, global_batch: int) -> DatasetInfo:
    """Return what is known of a WebDataset before it is read: not how many images it holds.

    Its identity is the names of its tars (not where they are) and what its labels are; its order
    depends on the global batch size, too.
    """
    urls = expand(config.path)
    order = _order(config, urls, global_batch)
    names = [url if url.startswith(PIPE) else url.rpartition("/")[2] for url in urls]
    content = canonical_json([names, config.label, config.num_classes])
    arranged = canonical_json([order.batch, order.streams, order.stream_window])
    return DatasetInfo(
        num_images=0,
        resolution=ORIGINAL,
        class_names=tuple(map(str, range(config.num_classes or 0))),
        digest=hashlib.sha256(content).hexdigest(),
        order=hashlib.sha256(arranged).hexdigest(),
    )


def _order(
    config: DataConfig, urls: Sequence[str], global_batch: int, seed: int = 0
) -> StreamOrder:
    window = config.shuffle_window or WINDOW
    return StreamOrder(len(urls), global_batch, seed, config.shuffle, window)


def _image(sample: Sample) -> bytes:
    for ending in IMAGES:
        if ending in sample.members:
            return sample.members[ending]
    held = ", ".join(sorted(sample.members)) or "nothing"
    raise BadImage(f"has no image ({', '.join(IMAGES)}), but {held}")


def _label_reader(config: DataConfig) -> Callable[[Sample], int]:
    """Return a function from a sample to its class, -1 in unlabelled sets; it raises BadImage."""
    if config.num_classes is None:
        return lambda _: -1
    ending, _, key = config.label.partition(":")
    most = config.num_classes

    def read(sample: Sample) -> int:
        try:
            text = sample.members[ending].decode()
            label = int(json.loads(text)[key] if key else text)
        except (KeyError, ValueError, TypeError):
            raise BadImage(f"has no class in {config.label} (data.label)") from None
        if not 0 <= label < most:
            raise BadImage(f"has the class {label}, outside of 0 to {most - 1} (data.num_classes)")
        return label

    return read
