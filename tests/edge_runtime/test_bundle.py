"""The bundle's bytes, its values, its versions, and what the reader says when something is wrong."""

import json
import math
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.backends import open_session
from edge_runtime.bundle import Bundle, Preprocessing, Task, TensorSpec, write_bundle
from edge_runtime.bundle.canonical import canonical_json, parse_canonical_json
from edge_runtime.errors import BundleError, StateError
from tests.support.golden import MODEL, WEIGHTS, golden_manifest
from tests.support.mutate import sign
from tests.support.tiny import tiny_bundle, tiny_parts

GOLDEN = Path(__file__).parents[1] / "golden"


def write_directory(path: Path, manifest: bytes, model: bytes = MODEL, weights: bytes = WEIGHTS) -> Path:
    path.mkdir()
    for name, content in (("manifest.json", manifest), ("model.onnx", model), ("weights.bin", weights)):
        (path / name).write_bytes(content)
    return path


def golden_body() -> dict[str, Any]:
    body: dict[str, Any] = json.loads((GOLDEN / "plain_v1.manifest.json").read_bytes())
    return body


class TestGoldenBytes:
    @pytest.mark.parametrize("reverse", [False, True])
    def test_equal_values_give_these_bytes_whatever_their_order(self, tmp_path: Path, reverse: bool) -> None:
        manifest = golden_manifest(reverse=reverse)
        write_bundle(tmp_path / "b.nnf", manifest, MODEL, WEIGHTS)
        write_bundle(tmp_path / "b", manifest, MODEL, WEIGHTS)
        assert (tmp_path / "b.nnf").read_bytes() == (GOLDEN / "plain_v1.nnf").read_bytes()
        assert (tmp_path / "b" / "manifest.json").read_bytes() == (GOLDEN / "plain_v1.manifest.json").read_bytes()

    def test_a_file_of_version_1_is_read_for_ever(self) -> None:
        bundle = Bundle.read(GOLDEN / "plain_v1.nnf")
        assert bundle.manifest == golden_manifest()
        assert (bundle.model_bytes, bundle.weights) == (MODEL, WEIGHTS)
        assert bundle.digest == "6c0ee26df69eba5cadbc6cf1b164bc8d1af61e6077916f81d1aa17a9b5437f4b"

    def test_a_model_of_version_1_gives_its_logits_for_ever(self) -> None:
        session = open_session(Bundle.read(GOLDEN / "tiny_v1.nnf"))
        with np.load(GOLDEN / "tiny_v1_logits.npz") as recorded:
            images = recorded["images"]
            for gates in tiny_parts().manifest.space.enumerate():
                found = session.run({"image": images}, gates)["logits"]
                np.testing.assert_allclose(found, recorded[str(gates)], atol=1e-4)
        session.close()

    def test_other_programs_read_the_zip(self) -> None:
        with zipfile.ZipFile(GOLDEN / "plain_v1.nnf") as archive:
            assert archive.testzip() is None
            assert archive.namelist() == ["manifest.json", "model.onnx", "weights.bin"]
            assert archive.read("weights.bin") == WEIGHTS


class TestRoundTrip:
    def test_a_directory_and_a_zip_are_the_same_bundle(self, tmp_path: Path) -> None:
        one, other = tiny_bundle(tmp_path / "b"), tiny_bundle(tmp_path / "b.nnf")
        for bundle in (one, other, Bundle.read(tmp_path / "b"), Bundle.read(str(tmp_path / "b.nnf"))):
            assert bundle.manifest == tiny_parts().manifest
            assert (bundle.digest, bundle.weights) == (one.digest, one.weights)
        assert other.source == str(tmp_path / "b.nnf")

    def test_zips_of_other_programs_are_read(self, tmp_path: Path) -> None:
        tiny_bundle(tmp_path / "b")
        with zipfile.ZipFile(tmp_path / "b.nnf", "w", zipfile.ZIP_STORED) as archive:
            for name in ("weights.bin", "manifest.json", "model.onnx"):
                archive.write(tmp_path / "b" / name, name)
        assert Bundle.read(tmp_path / "b.nnf").digest == Bundle.read(tmp_path / "b").digest

    def test_a_link_to_a_bundle_is_followed(self, tmp_path: Path) -> None:
        tiny_bundle(tmp_path / "v1")
        (tmp_path / "current").symlink_to("v1")
        assert Bundle.read(tmp_path / "current").manifest.name == "tiny"

    @pytest.mark.parametrize("name", ["b", "b.nnf"])
    def test_writing_replaces_the_old_bundle_and_leaves_nothing_else(self, tmp_path: Path, name: str) -> None:
        old, new = tiny_bundle(tmp_path / name, seed=1), tiny_bundle(tmp_path / name, seed=2)
        assert Bundle.read(tmp_path / name).digest == new.digest != old.digest
        assert os.listdir(tmp_path) == [name]

    def test_a_directory_of_other_files_is_never_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
        with pytest.raises(BundleError, match="not a bundle"):
            tiny_bundle(tmp_path / "photos")
        assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"
        assert os.listdir(tmp_path) == ["photos"]

    def test_a_place_that_does_not_exist_is_an_io_error(self, tmp_path: Path) -> None:
        with pytest.raises(StateError, match="cannot be written: No such file"):
            tiny_bundle(tmp_path / "nowhere" / "b.nnf")

    def test_what_the_reader_would_refuse_is_not_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("edge_runtime.bundle.files.MAX_TOTAL_BYTES", 1000)
        with pytest.raises(BundleError, match="more than 1000"):
            tiny_bundle(tmp_path / "b.nnf")
        assert os.listdir(tmp_path) == []


class TestVersions:
    @pytest.mark.parametrize("version", [[2, 0], [0, 9]])
    def test_another_major_version_is_refused(self, tmp_path: Path, version: list[int]) -> None:
        path = write_directory(tmp_path / "b", sign(golden_body() | {"version": version, "gates": "unlike today"}))
        with pytest.raises(
            BundleError, match=rf"version {version[0]}\.{version[1]}, this runtime reads 1\.x"
        ) as caught:
            Bundle.read(path)
        assert len(caught.value.faults) == 1

    def test_a_newer_minor_version_may_have_keys_that_we_do_not_know(self, tmp_path: Path) -> None:
        body = golden_body() | {"version": [1, 7], "later": {"x": 1}}
        body["task"]["later"] = 1
        assert Bundle.read(write_directory(tmp_path / "b", sign(body))).manifest == golden_manifest()

    def test_our_own_minor_version_may_not(self, tmp_path: Path) -> None:
        path = write_directory(tmp_path / "b", sign(golden_body() | {"later": 1}))
        with pytest.raises(BundleError, match="unknown key 'later'"):
            Bundle.read(path)

    @pytest.mark.parametrize("version", [None, "1.0", [1], [1, 0, 0], [True, 0], [1.0, 0], [-1, 0], {}])
    def test_a_version_must_be_two_numbers(self, tmp_path: Path, version: object) -> None:
        path = write_directory(tmp_path / "b", sign(golden_body() | {"version": version}))
        with pytest.raises(BundleError, match="no version"):
            Bundle.read(path)


class TestFaults:
    def test_all_are_reported_together(self, tmp_path: Path) -> None:
        body = golden_body()
        body["digest"] = "0" * 64
        path = write_directory(tmp_path / "b", canonical_json(body), MODEL[::-1], WEIGHTS + b"!")
        (path / "notes.txt").write_text("hello")
        with pytest.raises(BundleError) as caught:
            Bundle.read(path)
        text = str(caught.value)
        assert len(caught.value.faults) == 4
        for part in ("'notes.txt' is not listed", "digest", "model.onnx does not have the sha256", "has 257 bytes"):
            assert part in text

    def test_all_of_a_manifest_are_reported_together(self, tmp_path: Path) -> None:
        body = golden_body()
        body["task"]["kind"] = "poetry"
        body["preprocessing"]["height"] = 0
        del body["provenance"]["seed"]
        with pytest.raises(BundleError) as caught:
            Bundle.read(write_directory(tmp_path / "b", sign(body)))
        assert len(caught.value.faults) == 3

    @pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "weights.bin"])
    def test_a_missing_file_is_named(self, tmp_path: Path, name: str) -> None:
        tiny_bundle(tmp_path / "b")
        (tmp_path / "b" / name).unlink()
        with pytest.raises(BundleError, match=f"{name} is missing"):
            Bundle.read(tmp_path / "b")

    @pytest.mark.parametrize("path", ["nowhere.nnf", "nul\0byte", "x" * 5000, "\udc80"])
    def test_a_path_that_cannot_be_opened(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(BundleError, match="cannot be read"):
            Bundle.read(os.path.join(tmp_path, path))

    def test_two_wrong_paths_listed_in_the_manifest(self, tmp_path: Path) -> None:
        body = golden_body()
        body["files"] += [body["files"][0], {"path": "extra.bin", "sha256": "", "size_bytes": 0}]
        with pytest.raises(BundleError) as caught:
            Bundle.read(write_directory(tmp_path / "b", sign(body)))
        assert caught.value.faults == (
            "model.onnx is listed 2 times",
            "'extra.bin' is listed, but not a file of a bundle",
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


class TestCanonicalJson:
    @given(JSON)
    def test_round_trip(self, value: object) -> None:
        data = canonical_json(value)
        if data.count(b"[") + data.count(b"{") <= 16:
            assert parse_canonical_json(data) == value

    @given(
        st.binary(max_size=60) | st.text(alphabet='[]{}":,0123456789.eE-+ntfalsrueINy\\', max_size=60).map(str.encode)
    )
    def test_other_bytes_raise_value_error_and_nothing_else(self, data: bytes) -> None:
        try:
            value = parse_canonical_json(data)
        except ValueError:
            return
        assert canonical_json(value) == data

    @pytest.mark.parametrize(
        "text",
        [
            '{"a":1,"a":1}',
            '{"b":1,"a":1}',
            '{"a": 1}',
            '["\\u0061"]',
            '["ö"]',
            "[NaN]",
            "[-Infinity]",
            "[1e999]",
            "[1.00]",
            "[" + "9" * 5000 + "]",
            "[1]\n",
            "\ufeff[1]",
            "",
            "[" * 17 + "]" * 17,
            "[" * 10_000 + "]" * 10_000,
            '{"a":' * 10_000 + "1" + "}" * 10_000,
        ],
    )
    def test_one_value_has_one_text(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"\w"):
            parse_canonical_json(text.encode())


class TestValues:
    @pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31mred", "x" * 1001, "\ud800", "\u202e", None, 7])
    def test_text_that_could_harm_a_terminal_is_refused(self, name: Any) -> None:
        with pytest.raises(BundleError, match="must be printable"):
            replace(golden_manifest(), name=name)

    @pytest.mark.parametrize("shape", [(0,), (-1,), (1, None), (2.0,), (True,), (2**31,), (1,) * 9, (2**20, 2**20)])
    def test_shapes_out_of_range(self, shape: Any) -> None:
        with pytest.raises(BundleError, match="shape"):
            TensorSpec("x", "float32", shape)

    @pytest.mark.parametrize("value", [math.nan, math.inf, "0.5", None, True])
    def test_preprocessing_takes_finite_numbers(self, value: Any) -> None:
        with pytest.raises(BundleError, match="not a finite number"):
            Preprocessing(8, 8, mean=(0.0, value, 0.0), std=(1.0, 1.0, 1.0))

    def test_preprocessing_never_divides_by_zero(self) -> None:
        with pytest.raises(BundleError, match="must be above 0"):
            Preprocessing(8, 8, mean=(0.0, 0.0, 0.0), std=(1.0, 0.0, 1.0))

    def test_a_class_name_is_given_once(self) -> None:
        with pytest.raises(BundleError, match="twice"):
            Task("classification", ("bolt", "bolt"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"inputs": ()}, "1 to 64 inputs"),
            ({"gate_input": "image"}, "share a name"),
            ({"inputs": (TensorSpec("image", "float32", (None, 3, 64, 64)),)}, "does not fit the preprocessing"),
            ({"outputs": (TensorSpec("logits", "float32", (None, 3)),)}, "one logit for each"),
            ({"outputs": (TensorSpec("logits", "int64", (None, 2)),)}, "every output is float32"),
            ({"prior": ()}, "one value for each alternative"),
            ({"prior": ((0.0, 0.1, -0.1), (0.0, 0.5), (0.0, 0.0), (0.0, 0.0, 0.0))}, "never below 0"),
            ({"prior": ((0.1, 0.1, 0.1), (0.0, 0.5), (0.0, 0.0), (0.0, 0.0, 0.0))}, "starts at 0"),
            ({"figures": {"accuracy": math.nan}}, "not a finite number"),
        ],
    )
    def test_a_manifest_cannot_contradict_itself(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(BundleError, match=message):
            replace(golden_manifest(), **change)
