import subprocess
import sys

import numpy as np
import pytest

from builder.scenes import CLASSES, CONDITIONS, render, render_set
from builder.scenes.canvas import Canvas, circle
from edge_runtime.errors import UsageError

pytestmark = pytest.mark.builder


@pytest.mark.parametrize("condition", CONDITIONS)
def test_same_arguments_give_same_bytes(condition):
    first = render(5, 3, condition=condition)
    second = render(5, 3, condition=condition)
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.label, first.box, first.condition) == (second.label, second.box, condition)


def test_another_process_renders_the_same_bytes():
    code = (
        "import hashlib, sys; from builder.scenes import render\n"
        "assert 'torch' not in sys.modules\n"
        "print(hashlib.sha256(b''.join(render(9, i, condition=c).image.tobytes()"
        " for i in range(4) for c in ('day', 'night', 'rain', 'haze', 'blur'))).hexdigest())"
    )
    digests = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_seed_index_and_label_each_change_the_picture():
    base = render(5, 3, label=2).image
    assert (render(6, 3, label=2).image != base).any()
    assert (render(5, 4, label=2).image != base).any()
    assert (render(5, 3, label=7).image != base).any()


def test_weather_changes_the_picture_but_not_the_scene():
    scenes = [render(11, 0, condition=condition) for condition in CONDITIONS]
    assert len({scene.image.tobytes() for scene in scenes}) == len(CONDITIONS)
    assert len({(scene.label, scene.box) for scene in scenes}) == 1


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_every_class_in_every_condition_has_a_box_inside_the_image(label):
    for index, condition in enumerate(CONDITIONS):
        scene = render(1, index, condition=condition, label=label)
        left, top, right, bottom = scene.box
        assert scene.image.shape == (64, 64, 3)
        assert scene.image.dtype == np.uint8
        assert scene.label == label
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        assert max(right - left, bottom - top) >= 8


def test_box_encloses_what_changes_when_the_part_is_another_one():
    one, other = render(21, 4, label=0), render(21, 4, label=4)
    changed = np.abs(one.image.astype(int) - other.image.astype(int)).max(axis=2) > 60
    rows, columns = np.nonzero(changed)
    left, top = min(one.box[0], other.box[0]), min(one.box[1], other.box[1])
    right, bottom = max(one.box[2], other.box[2]), max(one.box[3], other.box[3])
    inside = (columns >= left - 4) & (columns <= right + 4) & (rows >= top - 4) & (rows <= bottom + 4)
    assert changed.any()
    assert inside.mean() > 0.5


def test_box_is_of_the_whole_part_also_where_something_lies_on_it():
    canvas = Canvas(90)
    canvas.pen(np.eye(2) * 20.0, (45.0, 45.0), target=True).fill(circle(1.0), 100, "steel")
    before = canvas.target.getbbox()
    canvas.pen(np.eye(2) * 20.0, (60.0, 45.0)).fill(circle(1.0), 100, "leaf")
    assert canvas.target.getbbox() == before == (25, 25, 66, 66)


def test_a_hole_is_not_part_of_the_mask():
    canvas = Canvas(90)
    pen = canvas.pen(np.eye(2) * 20.0, (45.0, 45.0), target=True)
    pen.fill(circle(1.0), 100, "steel")
    pen.erase(circle(0.5))
    assert canvas.target.getpixel((45, 45)) == 0
    assert canvas.height.getpixel((45, 45)) == 0
    assert canvas.target.getpixel((45, 30)) == 255


def test_a_longer_set_begins_with_the_shorter_one():
    short, long = render_set(3, 6), render_set(3, 11)
    for name, values in short.items():
        assert (long[name][:6] == values).all()
    assert short["conditions"].tolist() == [*CONDITIONS, "day"]
    assert short["boxes"].dtype == np.float32
    assert short["labels"].dtype == np.int64


def test_workers_change_nothing():
    alone, together = render_set(4, 70, workers=1), render_set(4, 70, workers=2)
    for name, values in alone.items():
        assert (together[name] == values).all()


def test_every_class_turns_up_about_equally_often():
    labels = render_set(8, 640, ("day",), size=32)["labels"]
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert counts.min() >= 16
    assert counts.max() <= 80


def test_night_is_darker_and_haze_flatter_than_day():
    day, night, haze = (
        render_set(2, 24, (condition,))["images"].astype(float) for condition in ("day", "night", "haze")
    )
    assert night.mean() < 0.6 * day.mean()
    assert haze.std(axis=(1, 2)).mean() < 0.6 * day.std(axis=(1, 2)).mean()


def test_size_is_a_parameter():
    assert render(1, 0, size=96).image.shape == (96, 96, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"condition": "fog"},
        {"size": 8},
        {"size": 4096},
        {"label": 16},
        {"label": -1},
        {"index": -1},
    ],
)
def test_what_does_not_exist_is_refused(arguments):
    with pytest.raises(UsageError):
        render(1, **arguments)


@pytest.mark.parametrize(("count", "conditions"), [(0, CONDITIONS), (4, ()), (4, ("day", "snow"))])
def test_a_set_that_cannot_be_is_refused(count, conditions):
    with pytest.raises(UsageError):
        render_set(1, count, conditions)
