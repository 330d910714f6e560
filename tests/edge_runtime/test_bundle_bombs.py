"""Files that grow, overlap or lie about their size: refused by headers alone, within a few MiB."""

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.bundle import Bundle
from edge_runtime.bundle.stored_zip import zip_stored
from edge_runtime.errors import BundleError
from tests.support.mutate import sign
from tests.support.tiny import tiny_bundle

EXTRA_BYTES = 16 * 2**20
BOMB_BYTES = 32 * 2**20
END = struct.Struct("<4s4H2LH")


Refused = Callable[[bytes | Path, str], None]


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    tiny_bundle(tmp_path / "whole.nnf")
    return (tmp_path / "whole.nnf").read_bytes()


@pytest.fixture
def refused(tmp_path: Path) -> Refused:
    def check(data: bytes | Path, message: str) -> None:
        path = data if isinstance(data, Path) else tmp_path / "bomb.nnf"
        if isinstance(data, bytes):
            path.write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(BundleError, match=message):
                Bundle.read(path)
            assert tracemalloc.get_traced_memory()[1] < EXTRA_BYTES
        finally:
            tracemalloc.stop()

    return check


def zipped(compression: int, files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_end(data: bytes, **changes: int) -> bytes:
    """The zip with other numbers in its end record."""
    names = ("disk", "start_disk", "here", "count", "length", "offset", "comment")
    signature, *values = END.unpack(data[-END.size :])
    fields = dict(zip(names, values, strict=True)) | changes
    return data[: -END.size] + END.pack(signature, *fields.values())


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_thousand_to_one(refused: Refused, method: int) -> None:
    bomb = zipped(method, {"manifest.json": b"{}", "model.onnx": b"", "weights.bin": bytes(BOMB_BYTES)})
    assert len(bomb) * 900 < BOMB_BYTES
    refused(bomb, "is compressed or encrypted")


def test_members_that_overlap(refused: Refused) -> None:
    files = {"manifest.json": b"{}", "model.onnx": bytes(100), "weights.bin": bytes(100)}
    data = zip_stored(files)
    second, third = data.rindex(b"model.onnx"), data.rindex(b"weights.bin")
    offset_of = {at: data[at - 4 : at] for at in (second, third)}
    refused(data[: third - 4] + offset_of[second] + data[third:], "has a header unlike|does not follow")


def test_one_content_under_many_names(refused: Refused) -> None:
    data = zip_stored({"manifest.json": bytes(1000)})
    end = END.unpack(data[-END.size :])
    entry = data[end[6] : end[6] + end[5]]
    body = data[: end[6]] + entry * 16
    refused(body + END.pack(b"PK\5\6", 0, 0, 16, 16, len(entry) * 16, end[6], 0), "does not follow the one before")


@pytest.mark.parametrize("count", [0, 17, 65_535])
def test_another_number_of_members(refused: Refused, whole: bytes, count: int) -> None:
    refused(with_end(whole, here=count, count=count), f"claims {count} members")


def test_a_million_members(refused: Refused) -> None:
    # 65,535 entries and a 64-bit end record that claims 10^6, as a zip of a million files has.
    zip64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, 46 * 10**6, 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    refused(
        zip64 + locator + END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0), "claims 65535 members"
    )


@pytest.mark.parametrize("change", [{"length": 2**32 - 1}, {"offset": 2**32 - 1}, {"offset": 0}, {"length": 0}])
def test_a_directory_somewhere_else(refused: Refused, whole: bytes, change: dict[str, int]) -> None:
    refused(with_end(whole, **change), "not where it must be")


def test_sizes_of_64_bits(refused: Refused, whole: bytes) -> None:
    directory = END.unpack(whole[-END.size :])[6]
    at = whole.index(b"weights.bin", directory) - 46
    for sizes in ((2**32 - 1, 2**32 - 1), (2**31, 2**31)):
        bomb = whole[: at + 20] + struct.pack("<2L", *sizes) + whole[at + 28 :]
        refused(bomb, "has a header unlike its directory entry")


@pytest.mark.parametrize("flag", [0x1, 0x8, 0x2000])
def test_encryption_and_sizes_that_come_later(refused: Refused, whole: bytes, flag: int) -> None:
    directory = END.unpack(whole[-END.size :])[6]
    refused(whole[: directory + 8] + struct.pack("<H", flag) + whole[directory + 10 :], "compressed or encrypted")


def test_bytes_that_belong_to_no_member(refused: Refused, whole: bytes) -> None:
    refused(b"#!/bin/sh\n" + whole, "not where it must be")
    refused(whole + b"\0", "does not end as a zip")
    refused(with_end(whole, comment=7) + b"comment", "does not end as a zip")
    directory = END.unpack(whole[-END.size :])[6]
    gap = whole[:directory] + bytes(10) + whole[directory:]
    refused(with_end(gap, offset=directory + 10), "belong to no member")


def test_a_member_twice(refused: Refused) -> None:
    data = zip_stored({"manifest.json": b"{}", "model.onnx": b"", "weights.bia": b"", "weights.bin": b""})
    refused(data.replace(b"weights.bia", b"weights.bin"), "is there twice")


def test_files_of_enormous_size_are_not_read(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "big.nnf").touch()
    with (tmp_path / "big.nnf").open("r+b") as stream:
        stream.truncate(2**40)
    refused(tmp_path / "big.nnf", "more than 536870912")
    tiny_bundle(tmp_path / "b")
    with (tmp_path / "b" / "weights.bin").open("r+b") as stream:
        stream.truncate(2**30)
    refused(tmp_path / "b", "more than 536870912")


def test_an_enormous_manifest(refused: Refused) -> None:
    files = {"manifest.json": b"[" + b" " * 2**20, "model.onnx": b"", "weights.bin": b""}
    refused(zip_stored(files), "manifest.json has 1048577 bytes, more than 1048576")


def test_a_directory_of_many_files(refused: Refused, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b")
    for index in range(100):
        (tmp_path / "b" / f"{index}").touch()
    refused(tmp_path / "b", "more files than a bundle has")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "nested more than 16 deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested more than 16 deep"),
        (b'{"a":"' + b"[" * 10_000 + b'"}', "not of the format"),
        (b'{"a":' + b"9" * 100_000 + b"}", "manifest.json cannot be read"),
        (b'{"a":1e' + b"9" * 100_000 + b"}", "out of range"),
        (b'{"a":[' + b"0," * 400_000 + b"0]}", "not of the format"),
        (b"\0" * 1000, "manifest.json cannot be read"),
        (b"", "manifest.json cannot be read"),
        (b"\x80\x04\x95", "not ASCII"),
    ],
)
def test_json_that_would_hurt_the_parser(refused: Refused, manifest: bytes, message: str) -> None:
    refused(zip_stored({"manifest.json": manifest, "model.onnx": b"", "weights.bin": b""}), message)


def test_a_manifest_of_a_hundred_thousand_faults_says_some(tmp_path: Path) -> None:
    body = {"format": "nnf-bundle", "version": [1, 0]} | {f"k{index}": 0 for index in range(50_000)}
    (tmp_path / "b.nnf").write_bytes(zip_stored({"manifest.json": sign(body), "model.onnx": b"", "weights.bin": b""}))
    with pytest.raises(BundleError) as caught:
        Bundle.read(tmp_path / "b.nnf")
    assert len(caught.value.faults) == 21
    assert caught.value.faults[-1] == "and 49996 more"
