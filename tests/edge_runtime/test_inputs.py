from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_runtime.bundle import Preprocessing
from edge_runtime.errors import InputError
from edge_runtime.inputs import (
    SampleBuffer,
    Samples,
    check_finite,
    check_labels,
    load_folder,
    load_npz,
    load_samples,
    preprocess,
    preprocess_all,
)

SPEC = Preprocessing(8, 12, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(seed: int, height: int = 8, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_frame_of_the_models_size_is_only_normalised() -> None:
    frame = picture(0)
    tensor = preprocess(frame, SPEC)
    expected = (frame.astype(np.float64) / 255 - SPEC.mean) / SPEC.std
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor, expected.transpose(2, 0, 1), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 255))
def test_a_plain_frame_of_any_size_stays_plain(height: int, width: int, level: int) -> None:
    frame = np.full((height, width, 3), level, np.uint8)
    tensor = preprocess(frame, SPEC)
    assert tensor.shape == (3, 8, 12)
    expected = (level / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    np.testing.assert_allclose(tensor, np.broadcast_to(expected[:, None, None], tensor.shape), atol=1e-4)


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    chequered = (np.indices((80, 120)).sum(axis=0) % 2 * 255).astype(np.uint8)
    tensor = preprocess(np.stack([chequered] * 3, axis=-1), Preprocessing(8, 12, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)))
    assert np.abs(tensor).max() < 0.02


def test_a_view_with_reversed_channels_is_a_frame() -> None:
    frame = picture(1, 30, 40)
    np.testing.assert_array_equal(preprocess(frame[..., ::-1], SPEC), preprocess(frame[..., ::-1].copy(), SPEC))


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        ([[1, 2, 3]], "list"),
        (np.zeros((8, 12), np.uint8), "repeat a grey image"),
        (np.zeros((8, 12, 4), np.uint8), "drop the alpha"),
        (np.zeros((1, 8, 12, 3), np.uint8), r"\[1, 8, 12, 3\]"),
        (np.zeros((8, 12, 3), np.float32), "float32"),
        (np.zeros((8, 12, 3), np.int64), "int64"),
        (np.zeros((0, 12, 3), np.uint8), "empty"),
        (None, "NoneType"),
    ],
)
def test_what_is_not_a_frame_is_refused_with_a_word(frame: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        preprocess(frame, SPEC)


def test_no_frames_are_no_samples() -> None:
    with pytest.raises(InputError, match="no images"):
        preprocess_all([], SPEC)
    with pytest.raises(InputError, match="no images"):
        Samples(())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tensor_with_one_bad_value_is_refused(bad: float) -> None:
    array = np.zeros((2, 3, 8, 12), np.float32)
    array[1, 2, 3, 4] = bad
    with pytest.raises(InputError, match="'image' holds NaN or infinity"):
        check_finite("image", array)


def test_large_finite_values_are_finite() -> None:
    check_finite("image", np.full((1, 3, 8, 12), 1e30, np.float32))


@pytest.mark.parametrize(
    ("labels", "word"),
    [([0, 1], "2 labels for 3 images"), ([0, 1, 7], "label 7"), ([0, -1, 1], "label -1"), ([0.5, 1.0, 2.0], "float64")],
)
def test_labels_must_belong_to_the_images(labels: list[float], word: str) -> None:
    with pytest.raises(InputError, match=word):
        check_labels(labels, 3, 4)


def test_a_flat_folder_is_unlabelled_and_read_upright(tmp_path: Path) -> None:
    Image.fromarray(picture(0, 10, 20)).save(tmp_path / "b.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    Image.fromarray(picture(1, 10, 20)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(picture(2)[..., 0]).save(tmp_path / "c.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    samples = load_samples(tmp_path)
    assert samples.names == ("a.jpg", "b.png", "c.PNG")
    assert samples.labels is None
    assert [image.shape for image in samples.images] == [(20, 10, 3), (10, 20, 3), (8, 12, 3)]
    np.testing.assert_array_equal(samples.images[1], picture(0, 10, 20))


def test_class_folders_are_labels_in_the_models_order(tmp_path: Path) -> None:
    for name in ("nut", "bolt"):
        (tmp_path / name).mkdir()
        Image.fromarray(picture(0)).save(tmp_path / name / "x.png")
    assert load_folder(tmp_path, class_names=("washer", "nut", "bolt")).labels.tolist() == [2, 1]
    assert load_folder(tmp_path).class_names == ("bolt", "nut")
    with pytest.raises(InputError, match=r"'nut' is not a class of this model.*washer"):
        load_folder(tmp_path, class_names=("washer", "bolt"))


def test_a_limit_spreads_over_the_folder_and_a_size_shrinks_on_reading(tmp_path: Path) -> None:
    for index in range(10):
        Image.fromarray(picture(index, 40, 60)).save(tmp_path / f"{index}.png")
    samples = load_samples(tmp_path, limit=5, size=(8, 12))
    assert samples.names == ("0.png", "2.png", "4.png", "6.png", "8.png")
    np.testing.assert_array_equal(preprocess(samples.images[1], SPEC), preprocess(picture(2, 40, 60), SPEC))


def test_an_npz_of_arrays_or_of_jpegs(tmp_path: Path) -> None:
    images = np.stack([picture(0), picture(1)])
    np.savez(tmp_path / "plain.npz", images=images, labels=[1, 0], conditions=["day", "night"], class_names=["a", "b"])
    plain = load_samples(tmp_path / "plain.npz")
    np.testing.assert_array_equal(np.stack(plain.images), images)
    assert (plain.labels.tolist(), plain.conditions, plain.class_names) == ([1, 0], ("day", "night"), ("a", "b"))
    assert load_npz(tmp_path / "plain.npz", limit=1).labels.tolist() == [1]

    files = []
    for index in range(2):
        Image.fromarray(picture(index)).save(tmp_path / "one.jpg")
        files.append((tmp_path / "one.jpg").read_bytes())
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(tmp_path / "jpeg.npz", jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets)
    coded = load_npz(tmp_path / "jpeg.npz")
    assert [image.shape for image in coded.images] == [(8, 12, 3)] * 2
    assert coded.labels is None


def test_bad_data_paths_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_samples(tmp_path / "missing")
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(InputError, match=r"neither a directory nor an \.npz"):
        load_samples(tmp_path / "data.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images.*\.png"):
        load_samples(tmp_path / "empty")
    broken = tmp_path / "broken"
    broken.mkdir()
    Image.fromarray(picture(0)).save(broken / "half.png")
    (broken / "half.png").write_bytes((broken / "half.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"half\.png.* cannot be read"):
        load_samples(broken)
    (broken / "half.png").unlink()
    (broken / "text.png").write_text("no pixels here")
    with pytest.raises(InputError, match=r"text\.png.* it is no image") as refused:
        load_samples(broken)
    assert "remove it from the data" in str(refused.value.hint)
    (broken / "part").mkdir()
    Image.fromarray(picture(0)).save(broken / "part" / "x.png")
    with pytest.raises(InputError, match="images and folders of images"):
        load_samples(broken)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"labels": [1]}, "holds no images"),
        ({"images": np.zeros((2, 8, 12, 3), np.uint8), "labels": [1]}, "for 2 images"),
        ({"images": np.zeros((0, 8, 12, 3), np.uint8)}, "no images"),
        ({"images": np.zeros((2, 8, 12), np.uint8)}, "grey"),
        ({"images": np.zeros((2, 8, 12, 3), np.float32)}, "uint8"),
        ({"jpeg": np.zeros(4, np.uint8), "offsets": [0, 9]}, "belong together"),
        ({"jpeg": np.zeros(4, np.uint8), "offsets": [0, 4]}, r"images\[0\].* cannot be read"),
        ({"images": np.array([None, {}])}, "cannot be read as an"),
        ({"images": np.uint8(3)}, "single value"),
        ({"images": np.zeros((2, 8, 12, 3), np.uint8), "class_names": np.array("bolt")}, "single value"),
    ],
)
def test_bad_npz_files_say_what_is_wrong(tmp_path: Path, arrays: dict[str, object], word: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=word):
        load_npz(tmp_path / "bad.npz")


def test_labels_of_an_npz_follow_the_models_order_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "named.npz"
    np.savez(path, images=np.stack([picture(n) for n in range(3)]), labels=[0, 1, 0], class_names=["nut", "bolt"])
    samples = load_samples(path, class_names=("washer", "bolt", "nut"))
    assert (samples.labels.tolist(), samples.class_names) == ([2, 1, 2], ("washer", "bolt", "nut"))
    with pytest.raises(InputError, match=r"'bolt' is not a class of this model.*washer"):
        load_samples(path, class_names=("washer", "nut"))


@pytest.mark.parametrize(("files", "damaged"), [(2, 1), (19, 1), (40, 2)])
def test_a_few_damaged_images_of_a_folder_are_left_out(tmp_path: Path, files: int, damaged: int) -> None:
    for part in ("bolt", "nut"):
        (tmp_path / part).mkdir()
    names = [f"{('bolt', 'nut')[number % 2]}/{number:02d}.png" for number in range(files)]
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(tmp_path / name)
    for name in names[:damaged]:
        (tmp_path / name).write_bytes(b"cut off")
    found = load_samples(tmp_path)
    assert found.labels is not None
    assert sorted(found.names) == sorted(names[damaged:])
    assert [("bolt", "nut")[label] for label in found.labels] == [name.split("/")[0] for name in found.names]
    assert [name for name in names if any(name in message for message in found.skipped)] == names[:damaged]
    (tmp_path / names[damaged]).write_bytes(b"one too many")
    with pytest.raises(InputError, match="cannot be read"):
        load_samples(tmp_path)


def test_a_compressed_npz_that_is_damaged_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "damaged.npz"
    np.savez_compressed(path, images=np.stack([picture(0), picture(1)]))
    content = path.read_bytes()
    for start in range(0, len(content), 16):
        path.write_bytes(content[:start] + b"\xff" * 16 + content[start + 16 :])
        try:
            load_npz(path)
        except InputError:
            continue


def test_a_file_that_only_says_it_is_an_npz(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing of the kind")
    with pytest.raises(InputError, match="cannot be read as an"):
        load_samples(tmp_path / "bad.npz")


def test_the_buffer_is_bounded_and_is_zeroed() -> None:
    buffer = SampleBuffer(4, 8, 12, seed=0)
    for index in range(50):
        buffer.add(np.full((8, 12, 3), index + 1, np.uint8))
    held = buffer.images()
    pixels = buffer._pixels
    assert held.shape == (4, 8, 12, 3)
    assert held[:, 0, 0, 0].max() > 4
    buffer.close()
    buffer.add(picture(0))
    assert not pixels.any()
    assert len(buffer) == 0
    assert len(buffer.images()) == 0


def test_a_buffer_of_nothing_keeps_nothing() -> None:
    buffer = SampleBuffer(0, 8, 12, seed=0)
    buffer.add(picture(0))
    assert len(buffer) == 0
    with pytest.raises(InputError, match="-1"):
        SampleBuffer(-1, 8, 12, seed=0)
