"""gzip and zstd: what is packed comes back, what is damaged is found, nothing is believed."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keikaku_snapshots.errors import (
    DiskFullError,
    JSONCorruptError,
    SnapshotCorruptError,
    ToolMissingError,
    UsageError,
)
from keikaku_snapshots.snapshots.compressed_dump import PackingPipe
from keikaku_snapshots.snapshots.compression import (
    CUSTOM_LEVELS,
    LEVELS,
    Unpacked,
    check_level,
    compression_of,
    packer,
    require,
)
from keikaku_snapshots.snapshots.manifest import Manifest
from keikaku_snapshots.snapshots.names import suffix_of
from keikaku_snapshots.snapshots.packed_file import PackedFile
from keikaku_snapshots.snapshots.store import SnapshotStore
from keikaku_snapshots.snapshots.unpack import read_packed, unpack_into

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from keikaku_snapshots.snapshots.reading import OpenSnapshot

#: A dump as pg_dump frames it.
DUMP = (
    b"--\n-- PostgreSQL database dump\n--\n\n\\restrict K1\n\n"
    + b"".join(b"SELECT %d, 'x%d';\n" % (number, number * 7919) for number in range(60))
    + b"--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict K1\n\n"
)


def _packed(content: bytes, compression: str, level: int | None = None, step: int = 70_000) -> bytes:
    made = packer(compression, level)
    blocks = [made.compress(content[start : start + step]) for start in range(0, len(content), step)]
    return b"".join([*blocks, made.flush()])


def _read(packed: bytes, compression: str | None, count: int = 65536) -> bytes:
    with tempfile.TemporaryFile() as file:
        file.write(packed)
        file.flush()
        source = Unpacked(file.fileno(), compression, "the/file")
        blocks = []
        while block := source.read(count):
            assert len(block) <= count
            blocks.append(block)
        return b"".join(blocks)


# -- levels and libraries ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compression", "bad"),
    [("gzip", [0, 10, -1, True, 1.0, "1"]), ("zstd", [0, 20, -5, False, 3.5]), ("custom", [-1, 10, True])],
)
def test_a_level_that_does_not_exist_is_refused_with_the_range(compression: str, bad: list[object]) -> None:
    """B5: a `ValueError` that says what there is."""
    levels = LEVELS.get(compression, CUSTOM_LEVELS)
    for level in bad:
        with pytest.raises(ValueError, match=f"from {levels.lowest} to {levels.highest}"):
            check_level(level, levels, compression)
    for good in (None, levels.lowest, levels.default, levels.highest):
        check_level(good, levels, compression)


def test_without_the_library_zstd_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """B5: the extra is optional; writing and reading say so in the same words, gzip needs nothing."""
    monkeypatch.setitem(sys.modules, "zstandard", None)
    descriptor = os.open(os.devnull, os.O_RDONLY)
    uses: list[Callable[[], object]] = [
        lambda: require("zstd"),
        lambda: packer("zstd"),
        lambda: Unpacked(descriptor, "zstd", "the/file"),
    ]
    try:
        for use in uses:
            with pytest.raises(ToolMissingError, match=r"pip install 'keikaku_snapshots\[zstd\]'"):
                use()
    finally:
        os.close(descriptor)
    require("gzip")
    require(None)


def test_the_library_is_not_imported_before_it_is_used() -> None:
    """C5: `keikaku --help` does not pay for it."""
    code = "import sys, keikaku_snapshots.snapshots.create, keikaku_snapshots.snapshots.restore; "
    code += "sys.exit('zstandard' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- a round trip --------------------------------------------------------------------------


@given(
    content=st.one_of(
        st.binary(max_size=3000),
        st.tuples(st.binary(min_size=1, max_size=20), st.integers(1, 40_000)).map(
            lambda pair: pair[0] * pair[1]
        ),
    ),
    compression=st.sampled_from(["gzip", "zstd"]),
    level=st.integers(1, 9),
    step=st.integers(1, 200_000),
    count=st.integers(100, 300_000),
)
@settings(max_examples=60, deadline=None)
@example(content=b"", compression="zstd", level=1, step=1, count=100)
@example(content=b"a" * 2_000_000, compression="zstd", level=9, step=2_000_000, count=100_000)
def test_what_is_packed_comes_back(
    content: bytes, compression: str, level: int, step: int, count: int
) -> None:
    """Any content, in blocks of any size; several files one behind the other are one, as `cat` makes it."""
    packed = _packed(content, compression, level, max(step, len(content) // 100))
    assert _read(packed, compression, count) == content
    assert _read(packed + packed, compression, count) == content + content
    other = gzip.decompress(packed) if compression == "gzip" else None
    assert other in {None, content}


def test_equal_content_makes_equal_files() -> None:
    """The header of gzip holds neither time nor name, so checksums can be compared."""
    packed = _packed(DUMP, "gzip")
    assert packed[:2] == b"\x1f\x8b"
    assert (packed[3], packed[4:8]) == (0, b"\0\0\0\0")
    assert packed == _packed(DUMP, "gzip", LEVELS["gzip"].default)
    assert _packed(DUMP, "zstd") == _packed(DUMP, "zstd")


def test_a_file_is_recognised_by_its_first_bytes(tmp_path: Path) -> None:
    """A hand-made file may be called anything."""
    for content, expected in (
        (_packed(b"x", "gzip"), "gzip"),
        (_packed(b"x", "zstd"), "zstd"),
        (b"-- text", None),
        (b"", None),
    ):
        (tmp_path / "f").write_bytes(content)
        with (tmp_path / "f").open("rb") as file:
            assert compression_of(file.fileno()) == expected
    assert _read(b"plain text", None) == b"plain text"


def test_frames_without_data_are_passed_over() -> None:
    """RFC 8878: such frames may stand anywhere, as pzstd writes them."""
    skippable = b"\x5f\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    packed = zstandard.ZstdCompressor(write_content_size=True).compress(DUMP)
    assert _read(skippable + packed + skippable, "zstd") == DUMP
    with pytest.raises(SnapshotCorruptError, match="too early"):
        _read(packed + skippable[:-1], "zstd")


# -- damage --------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_cut_at_any_byte_is_found(compression: str) -> None:
    """B13, FAULTS 1, 3: every offset, also in the checksum at the very end."""
    for content in (DUMP, b"", b"a" * 300_000):
        packed = _packed(content, compression)
        for end in range(len(packed)):
            with pytest.raises(SnapshotCorruptError, match="スナップショットが破損") as caught:
                _read(packed[:end], compression)
            assert "the/file" in caught.value.found


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_no_flipped_bit_changes_what_is_read(compression: str) -> None:
    """B13, FAULTS 7: found, or without effect (as in the byte of gzip that names the system)."""
    packed = _packed(DUMP, compression)
    found = 0
    for place in range(len(packed)):
        damaged = bytearray(packed)
        damaged[place] ^= 1 << place % 8
        try:
            assert _read(bytes(damaged), compression) == DUMP
        except SnapshotCorruptError:
            found += 1
    assert found > 0.9 * len(packed)


@given(noise=st.binary(max_size=200), keep=st.integers(0, 300), compression=st.sampled_from(["gzip", "zstd"]))
@settings(max_examples=80, deadline=None)
def test_no_noise_ends_in_another_error(noise: bytes, keep: int, compression: str) -> None:
    """A file of any bytes is damaged or empty, never a crash."""
    with contextlib.suppress(SnapshotCorruptError):
        assert _read(_packed(DUMP, compression)[:keep] + noise, compression) == b""


def test_the_error_is_the_formats_own() -> None:
    """A JSON snapshot has a term of its own."""
    with tempfile.TemporaryFile() as file:
        file.write(_packed(DUMP, "gzip")[:-1])
        file.flush()
        source = Unpacked(file.fileno(), "gzip", "f.json.gz", JSONCorruptError)
        with pytest.raises(JSONCorruptError, match="JSONファイルが破損"):
            list(iter(lambda: source.read(1000), b""))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_stays_small_in_the_memory_and_on_the_disk(compression: str, tmp_path: Path) -> None:
    """A file may say 64 MB in a few bytes: no block is larger than asked for, nothing beyond the manifest."""
    packed = _packed(b"\0" * (64 << 20), compression, LEVELS[compression].highest, 1 << 20)
    assert len(packed) < 100_000
    target = tmp_path / "target"
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT)
    with (
        _opened(tmp_path / "snapshots", packed, compression, content=b"\0" * 5_000_000) as opened,
        pytest.raises(SnapshotCorruptError, match="more than the 5000000 bytes"),
    ):
        unpack_into(opened, descriptor, target, minimum_free_mb=0)
    os.close(descriptor)
    assert target.stat().st_size <= 5_000_000


# -- against the manifest ------------------------------------------------------------------


@contextlib.contextmanager
def _opened(
    folder: Path, packed: bytes, compression: str, *, content: bytes | None = None
) -> Iterator[OpenSnapshot]:
    """A snapshot whose manifest says that it holds this content; without manifest when there is none."""
    store = SnapshotStore(folder)
    store.prepare()
    suffix = suffix_of("plain", compression)
    version = store.next_version("app")
    if content is None:
        (folder / f"app_{version}.{suffix}").write_bytes(packed)
    else:
        manifest = Manifest(
            name="app",
            version=version,
            created_at=store.clock(),
            data_file="unset",
            size_bytes=len(packed),
            sha256=hashlib.sha256(packed).hexdigest(),
            format="plain",
            compression=compression,
            uncompressed_bytes=len(content),
            uncompressed_sha256=hashlib.sha256(content).hexdigest(),
        )
        with store.stage("app", suffix) as stage:
            os.write(stage.fileno(), packed)
            store.publish(stage, manifest)
    found = next(one for one in store.list("app") if one.version == version)
    with store.reading(found, trust=content is None) as opened:
        yield opened


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_what_is_in_a_file_must_be_what_the_manifest_says(compression: str, tmp_path: Path) -> None:
    """B13: size, checksum, header and end of the text; without a manifest header and end."""
    with _opened(tmp_path, _packed(DUMP, compression), compression, content=DUMP) as opened:
        assert read_packed(opened) == (hashlib.sha256(DUMP).hexdigest(), len(DUMP))
    other = DUMP.replace(b"SELECT 1,", b"SELECT 2,")
    for content, told in (
        (other, "SHA-256"),
        (DUMP[:-40], "bytes, the manifest says"),
        (DUMP + b"\n", "more than"),
    ):
        with (
            _opened(tmp_path, _packed(content, compression), compression, content=DUMP) as opened,
            pytest.raises(SnapshotCorruptError, match=told),
        ):
            read_packed(opened)
    with (
        _opened(tmp_path, DUMP, compression, content=DUMP) as opened,
        pytest.raises(SnapshotCorruptError, match="not packed with"),
    ):
        read_packed(opened)
    for content in (b"", DUMP[:-1], DUMP[1:], DUMP.replace(b"unrestrict K1", b"unrestrict K2")):
        with (
            _opened(tmp_path, _packed(content, compression), compression) as opened,
            pytest.raises(SnapshotCorruptError),
        ):
            read_packed(opened)
    with _opened(tmp_path, _packed(other, compression), compression) as opened:
        assert read_packed(opened).size_bytes == len(other)


def test_a_manifest_of_a_compressed_snapshot_survives_its_file(tmp_path: Path) -> None:
    """The two new fields are written and read; a size below zero is refused."""
    with _opened(tmp_path, _packed(DUMP, "gzip"), "gzip", content=DUMP) as opened:
        manifest = opened.snapshot.manifest
    assert manifest is not None
    assert Manifest.from_json(manifest.to_json()) == manifest
    broken = manifest.to_json().replace(b'"uncompressed_bytes": ', b'"uncompressed_bytes": -')
    with pytest.raises(SnapshotCorruptError):
        Manifest.from_json(broken)


# -- writing -------------------------------------------------------------------------------


def _full(*_arguments: object) -> int:
    raise OSError(28, "No space left on device")


def _pipe(path: Path, compression: str = "gzip") -> tuple[PackingPipe, int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    return PackingPipe(descriptor, path, compression=compression, level=None), descriptor


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_pipe_is_packed_while_it_is_written(compression: str, tmp_path: Path) -> None:
    """Both checksums are taken on the way, of text of any length."""
    content = DUMP.replace(b"SELECT 1,", random.Random(0).randbytes(3_000_000).hex().encode())
    pipe, descriptor = _pipe(tmp_path / "f", compression)
    with pipe:
        writing = os.dup(pipe.target)
        pipe.started()
        with os.fdopen(writing, "wb") as writer:
            writer.write(content)
        done = pipe.finish("f")
    os.close(descriptor)
    packed = (tmp_path / "f").read_bytes()
    assert done.file == (hashlib.sha256(packed).hexdigest(), len(packed))
    assert done.content == (hashlib.sha256(content).hexdigest(), len(content))
    assert pipe.written_bytes == len(content)
    assert _read(packed, compression) == content


def test_a_dump_whose_writer_dies_has_no_end(tmp_path: Path) -> None:
    """FAULTS 10: the end of the data proves nothing; without the end marker it is no dump."""
    for cut in (0, 10, len(DUMP) // 2, len(DUMP) - 1):
        pipe, descriptor = _pipe(tmp_path / "f")
        with pipe:
            writing = os.dup(pipe.target)
            pipe.started()
            os.write(writing, DUMP[:cut])
            os.close(writing)
            with pytest.raises(SnapshotCorruptError):
                pipe.finish("f")
        os.close(descriptor)


def test_a_stranger_with_the_writing_end_does_not_hang_us(tmp_path: Path) -> None:
    """A child that another thread forked in between never closes it: the end of the program counts."""
    pipe, descriptor = _pipe(tmp_path / "f")
    stranger = os.dup(pipe.target)
    with pipe:
        writing = os.dup(pipe.target)
        pipe.started()
        os.write(writing, DUMP)
        os.close(writing)
        content = pipe.finish("f").content
    os.close(stranger)
    os.close(descriptor)
    assert content is not None
    assert content.size_bytes == len(DUMP)


def test_a_writer_is_not_left_waiting_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS 9: it gets EPIPE at once, and the watcher learns of it."""
    pipe, descriptor = _pipe(tmp_path / "f", "zstd")
    noise = random.Random(0).randbytes(200_000)
    ended = threading.Event()

    def write(descriptor: int) -> None:
        try:
            for _ in range(200):
                written(descriptor, noise)
        except BrokenPipeError:
            ended.set()
        finally:
            os.close(descriptor)

    written = os.write
    assert pipe.problem() is None
    with pipe:
        writing = os.dup(pipe.target)
        pipe.started()
        monkeypatch.setattr("keikaku_snapshots.snapshots.packed_file.os.write", _full)
        thread = threading.Thread(target=write, args=[writing])
        thread.start()
        assert ended.wait(10)
        thread.join()
        assert pipe.problem()
        with pytest.raises(DiskFullError, match="ディスク容量不足"):
            pipe.check()
        with pytest.raises(DiskFullError):
            pipe.finish("f")
    os.close(descriptor)


def test_a_pipe_that_is_given_up_leaves_no_thread(tmp_path: Path) -> None:
    """A create that fails elsewhere does not wait for pg_dump's text."""
    before = threading.active_count()
    pipe, descriptor = _pipe(tmp_path / "f")
    with pipe:
        writing = os.dup(pipe.target)
        pipe.started()
        os.write(writing, DUMP[:100])
    os.close(writing)
    os.close(descriptor)
    assert threading.active_count() == before
    unused, descriptor = _pipe(tmp_path / "g")
    with unused:
        pass
    os.close(descriptor)


def test_a_file_that_is_not_packed_is_hashed_only(tmp_path: Path) -> None:
    """One writer for both."""
    descriptor = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    file = PackedFile(descriptor, tmp_path / "f", compression=None, level=None)
    file.write(DUMP)
    assert file.finish() == ((hashlib.sha256(DUMP).hexdigest(), len(DUMP)), None)
    os.close(descriptor)
    assert (tmp_path / "f").read_bytes() == DUMP


def test_only_a_pipe_takes_a_dump_by_number(tmp_path: Path) -> None:
    """FAULTS 35: a number that is no pipe, or a format that goes back, is refused before pg_dump starts."""
    from keikaku_snapshots.postgres.tool_start import prepare_pipe

    reading, writing = os.pipe()
    try:
        assert prepare_pipe(writing, "plain") == f"/dev/fd/{writing}"
        with pytest.raises(UsageError, match="only a plain dump"):
            prepare_pipe(writing, "custom")
        with (tmp_path / "f").open("wb") as file, pytest.raises(UsageError, match="no pipe"):
            prepare_pipe(file.fileno(), "plain")
    finally:
        os.close(reading)
        os.close(writing)
