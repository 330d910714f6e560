import io

import numpy as np
import pytest
from PIL import Image

from builder.fod import CONDITIONS, FILE_NAME, SPLITS, load_crops, split_frames
from edge_runtime.errors import InputError
from tests.support.data import data_folder

pytestmark = pytest.mark.builder

VIDEOS, FRAMES = 8, 20
NAMES = ("Bolt", "Nut")


def jpeg(colour):
    buffer = io.BytesIO()
    image = Image.new("RGB", (64, 64), "black")
    image.paste(colour, (40, 10, 60, 20))
    image.save(buffer, "JPEG", quality=95)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pytest.fixture
def data(tmp_path):
    """Two classes under all four conditions, one video each; the object is a bright box near the right edge."""
    count = VIDEOS * FRAMES
    video = np.repeat(np.arange(VIDEOS, dtype=np.int16), FRAMES)
    pictures = [jpeg((255, 0, 0)), jpeg((0, 255, 0))]
    jpegs = [pictures[v % 2] for v in video]
    arrays = {
        "jpeg": np.concatenate(jpegs),
        "offsets": np.concatenate([[0], np.cumsum([len(j) for j in jpegs])]).astype(np.int64),
        "boxes_xyxy": np.tile(np.array([40, 10, 60, 20], np.float32), (count, 1)),
        "box_label": (video % 2).astype(np.uint8),
        "box_image": np.arange(count, dtype=np.int32),
        "weather": np.array([0, 1, 0, 0], np.uint8)[video // 2],
        "light": np.array([0, 1, 1, 2], np.uint8)[video // 2],
        "weather_names": np.array(["dry", "wet"]),
        "light_names": np.array(["bright", "dim", "dark"]),
        "is_test": np.tile(np.arange(FRAMES) >= 16, VIDEOS),
        "video": video,
        "class_names": np.array(NAMES),
    }
    np.savez(tmp_path / FILE_NAME, **arrays)
    return tmp_path


def test_crops_show_the_object_in_a_square(data):
    crops = load_crops(data, size=32)
    assert crops.images.shape == (VIDEOS * FRAMES, 32, 32, 3)
    red = crops.images[crops.labels == 0].astype(int)
    assert red[:, 14:18, 14:18, 0].min() > 180
    assert red[:, :4].max() < 60  # ground above the object, which is twice as wide as high


def test_splits_are_by_time_with_a_gap_before_validation(data):
    crops = load_crops(data, size=16)
    of_video = crops.splits[crops.videos == 3]
    names = [SPLITS[index] for index in of_video]
    assert names == ["train"] * 12 + ["gap"] + ["validation"] * 3 + ["test"] * 4


def test_every_frame_is_in_one_split(data):
    crops = load_crops(data, size=16)
    assert sum(len(crops.split(name)) for name in SPLITS) == len(crops)


def test_conditions_and_classes_select(data):
    crops = load_crops(data, size=16)
    assert [len(crops.condition(name)) for name in CONDITIONS] == [40, 40, 40, 40]
    assert len(crops.condition("dry/bright", "wet/dim")) == 80
    assert crops.common_classes() == NAMES
    assert crops.condition("dry/bright").common_classes() == ()
    only = crops.only_classes(["Nut"])
    assert only.class_names == ("Nut",)
    assert set(only.labels) == {0}
    assert only.images[:, 8, 8, 1].min() > 180


def test_unknown_names_are_refused(data):
    crops = load_crops(data, size=16)
    with pytest.raises(InputError, match="unknown split 'val'"):
        crops.split("val")
    with pytest.raises(InputError, match="unknown condition"):
        crops.condition("snow")
    with pytest.raises(InputError, match="unknown class"):
        crops.only_classes(["Spoon"])


def test_the_cache_gives_the_same_and_a_damaged_one_is_made_again(data, tmp_path):
    cache = tmp_path / "work"
    first = load_crops(data, size=16, cache=cache)
    (kept,) = cache.iterdir()
    (data / FILE_NAME).rename(data / "gone.npz")
    again = load_crops(data, size=16, cache=cache)
    assert np.array_equal(first.images, again.images)
    assert again.class_names == first.class_names
    kept.write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be read"):
        load_crops(data, size=16, cache=cache)
    (data / "gone.npz").rename(data / FILE_NAME)
    assert len(load_crops(data, size=16, cache=cache)) == len(first)


def test_a_missing_or_damaged_set_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="--data"):
        load_crops(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"PK\x03\x04 not a set")
    with pytest.raises(InputError, match="cannot be read"):
        load_crops(tmp_path)


def test_a_video_of_one_frame_has_no_training_frame_to_leak():
    splits = split_frames(np.zeros(1, bool), np.zeros(1, np.int16))
    assert SPLITS[splits[0]] == "validation"


@pytest.mark.data
def test_the_real_set_has_the_documented_counts():
    crops = load_crops(data_folder(FILE_NAME), size=16)
    assert [len(crops.split(name)) for name in SPLITS] == [2242, 472, 944, 118]
    assert len(crops.common_classes()) == 14
    assert crops.split("train").labels.max() == 30
