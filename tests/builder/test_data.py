import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

from builder.data import (
    Augmentation,
    DatasetBatches,
    ImageBatches,
    ImageFolder,
    ImageSet,
    LoaderBatches,
    open_data,
    source_of,
)  # fmt: skip
from builder.training import Ranks
from edge_runtime.bundle import Preprocessing
from edge_runtime.errors import InputError, UsageError
from edge_runtime.inputs import list_folder, preprocess

pytestmark = pytest.mark.builder

SPEC = Preprocessing(height=12, width=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def image_set(count=40, labelled=True):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 12, 16, 3), np.uint8)
    return ImageSet(images, rng.integers(0, 3, count) if labelled else None, SPEC.mean, SPEC.std)


class Numbered(Dataset):
    """Image i is full of the value i, plus what the user's code draws from every generator there is."""

    def __init__(self, count=20, noise=0.0):
        self.count, self.noise = count, noise

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        drawn = torch.rand(()) + np.random.random()
        return torch.full((3, 4, 4), float(index)) + self.noise * float(drawn), index % 5


def folder(path, count=12, classes=("bolt", "nut"), size=(30, 20)):
    rng = np.random.default_rng(1)
    for number in range(count):
        place = path / classes[number % len(classes)] if classes else path
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03d}.png")
    return path


def flat(batches):
    return [(x.tolist(), None if y is None else y.tolist()) for x, y in batches]


# -- order ---------------------------------------------------------------------------------------------------------

SOURCES = {
    "images": lambda seed, ranks: ImageBatches(image_set(), 8, seed, ranks),
    "unlabelled": lambda seed, ranks: ImageBatches(image_set(labelled=False), 8, seed, ranks),
    "dataset": lambda seed, ranks: DatasetBatches(Numbered(noise=0.5), 8, seed, ranks),
    "loader": lambda seed, ranks: source_of(
        DataLoader(Numbered(noise=0.5), batch_size=8, shuffle=True), 99, seed=seed, ranks=ranks
    ),
    "sampler": lambda seed, ranks: source_of(
        DataLoader(Numbered(40), batch_size=4, sampler=WeightedRandomSampler(torch.ones(40), 40)),
        99, seed=seed, ranks=ranks,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_batches_are_a_function_of_seed_epoch_and_number(kind):
    source, again = SOURCES[kind](1, Ranks()), SOURCES[kind](1, Ranks())
    whole = flat(source(2, 0))
    assert len(whole) == len(source) > 1
    torch.manual_seed(77)
    assert flat(again(2, 0)) == whole
    assert flat(again(2, 1)) == whole[1:], "a resumed epoch goes on where it was"
    assert flat(source(3, 0)) != whole
    assert flat(SOURCES[kind](4, Ranks())(2, 0)) != whole


@pytest.mark.parametrize("kind", ["images", "dataset", "sampler"])
def test_the_ranks_share_the_examples_of_an_epoch(kind):
    parts = [[y.tolist() for _, y in SOURCES[kind](1, Ranks(rank, 2))(0, 0)] for rank in range(2)]
    whole = [y.tolist() for _, y in SOURCES[kind](1, Ranks())(0, 0)]
    assert len(parts[0]) == len(parts[1])
    if kind == "sampler":
        assert [batch for pair in zip(*parts, strict=True) for batch in pair] == whole
    else:
        assert [first + second for first, second in zip(*parts, strict=True)] == whole


def test_an_epoch_holds_each_example_once():
    numbers = [value for x, _ in DatasetBatches(Numbered(), 4, 0)(0, 0) for value in x[:, 0, 0, 0].tolist()]
    assert sorted(numbers) == [float(i) for i in range(20)]


def test_what_the_user_draws_does_not_move_the_generators_of_the_training():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    list(DatasetBatches(Numbered(noise=1.0), 4, 0)(0, 0))
    assert torch.equal(torch.rand(3), wanted)


def noisy(items):
    """A collate function that draws, as one for mixup does."""
    images = torch.stack([image for image, _ in items])
    return images + torch.rand(()) + np.random.random(), torch.tensor([label for _, label in items])


@pytest.mark.parametrize("collate", [None, noisy])
def test_worker_processes_change_nothing(collate):
    alone = flat(DatasetBatches(Numbered(noise=0.5), 4, 0, collate=collate)(1, 2))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    assert flat(DatasetBatches(Numbered(noise=0.5), 4, 0, workers=1, collate=collate)(1, 2)) == alone
    assert torch.equal(torch.rand(3), wanted), "the training's own random numbers stay where they were"


def test_a_collate_function_that_draws_is_seeded():
    torch.manual_seed(1)
    first = flat(DatasetBatches(Numbered(), 4, 0, collate=noisy)(1, 0))
    torch.manual_seed(2)
    assert flat(DatasetBatches(Numbered(), 4, 0, collate=noisy)(1, 0)) == first


@pytest.mark.parametrize("kind", ["augmented", "dataset"])
def test_the_ranks_draw_for_each_image_what_one_process_draws(kind):
    def batches(ranks):
        if kind == "dataset":
            return DatasetBatches(Numbered(noise=0.5), 8, 1, ranks)(2, 0)
        return ImageBatches(image_set(), 8, 1, ranks, Augmentation())(2, 0)

    parts = zip(*(batches(Ranks(rank, 2)) for rank in range(2)), strict=True)
    for (whole, _), halves in zip(batches(Ranks()), parts, strict=True):
        assert torch.allclose(torch.cat([images for images, _ in halves]), whole, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "world"), [(1, 1), (2, 2)])
def test_a_part_of_one_image_is_refused(batch_size, world):
    with pytest.raises(UsageError, match="1 image"):
        ImageBatches(image_set(), batch_size, 0, Ranks(0, world))


def test_batches_that_cannot_be_shared_are_refused():
    with pytest.raises(UsageError, match="equal parts"):
        ImageBatches(image_set(), 9, 0, Ranks(0, 2))


def test_a_set_smaller_than_a_batch_is_one_batch():
    assert [len(x) for x, _ in ImageBatches(image_set(5), 64)(0, 0)] == [5]


# -- what is given to the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [("bolt", "nut"), ()])
def test_a_folder_gives_what_the_runtime_gives(tmp_path, classes):
    images = ImageFolder(list_folder(folder(tmp_path, classes=classes)), SPEC)
    files = sorted(tmp_path.rglob("*.png"))
    for index, file in enumerate(files):
        wanted = preprocess(np.asarray(Image.open(file)), SPEC)
        assert np.allclose(images.inputs(slice(index, index + 1))[0].numpy(), wanted, atol=1e-5)
    assert (images.labels is None) == (not classes)
    if classes:
        assert [classes[label] for label in images.labels] == [file.parent.name for file in files]


@pytest.mark.parametrize("named", [True, False])
def test_an_npz_is_opened_resized_and_split(tmp_path, named):
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(0, 256, (50, 24, 24, 3), np.uint8), "labels": np.arange(50) % 2}
    np.savez(tmp_path / "d.npz", **arrays, **({"class_names": np.array(["a", "b"])} if named else {}))
    opened = open_data(tmp_path / "d.npz", SPEC)
    assert (len(opened.train), len(opened.validation)) == (45, 5)
    assert opened.train.inputs(slice(0, 2)).shape == (2, 3, 12, 16)
    assert opened.class_names == (("a", "b") if named else ())
    together = {image.tobytes() for image in (*opened.train.images, *opened.validation.images)}
    assert len(together) == 50, "nothing is in both parts"


def test_folders_named_train_and_val_are_the_split(tmp_path):
    folder(tmp_path / "train", 8)
    folder(tmp_path / "val", 4)
    opened = open_data(tmp_path, SPEC)
    assert (len(opened.train), len(opened.validation), opened.class_names) == (8, 4, ("bolt", "nut"))


def test_of_a_folder_named_train_alone_a_tenth_is_held_out(tmp_path):
    folder(tmp_path / "train", 40)
    (tmp_path / "notes").mkdir()
    opened = open_data(tmp_path, SPEC)
    assert (len(opened.train), len(opened.validation), opened.class_names) == (36, 4, ("bolt", "nut"))


def test_a_folder_named_train_alone_may_be_flat(tmp_path):
    folder(tmp_path / "train", 40, ())
    opened = open_data(tmp_path, SPEC)
    assert (len(opened.train), len(opened.validation), opened.class_names) == (36, 4, ())


def test_a_class_named_train_is_a_class(tmp_path):
    folder(tmp_path, 40, ("car", "train"))
    assert open_data(tmp_path, SPEC).class_names == ("car", "train")


def test_a_folder_named_val_alone_says_what_is_missing(tmp_path):
    folder(tmp_path / "valid", 40)
    with pytest.raises(InputError, match="train"):
        open_data(tmp_path, SPEC)


def test_a_dataset_of_images_alone_is_unlabelled():
    (batch,) = DatasetBatches([torch.zeros(3, 4, 4)] * 4, 4)(0, 0)
    assert batch[0].shape == (4, 3, 4, 4)
    assert batch[1] is None


# -- bad data ------------------------------------------------------------------------------------------------------


def test_an_unreadable_image_is_skipped_and_counted(tmp_path):
    folder(tmp_path, 24)
    broken = tmp_path / "bolt" / "004.png"
    broken.write_bytes(broken.read_bytes()[:60])
    images = ImageFolder(list_folder(tmp_path), SPEC)
    source = ImageBatches(images, 8, 0)
    batches = flat(source(0, 0))
    assert len(batches) == 3
    assert images.skipped == (broken,)
    assert images.labels[2] == images.labels[3]
    assert torch.equal(images.pixels(slice(2, 3)), images.pixels(slice(3, 4)))
    again = ImageFolder(list_folder(tmp_path), SPEC)
    assert flat(ImageBatches(again, 8, 0)(0, 1)) == batches[1:], "also for a run that goes on in the middle"


def test_many_unreadable_images_are_one_error(tmp_path):
    folder(tmp_path, 24)
    for file in sorted(tmp_path.rglob("*.png"))[:3]:
        file.write_bytes(b"not an image")
    images = ImageFolder(list_folder(tmp_path), SPEC)
    with pytest.raises(InputError, match="cannot be read") as caught:
        images.pixels(slice(None))
    assert "remove" in caught.value.hint


@pytest.mark.parametrize("count", [1, 2])
def test_where_no_image_can_be_read_that_is_one_error(tmp_path, count):
    for number in range(count):
        (tmp_path / f"{number}.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=f"{count} of {count} images"):
        ImageFolder(list_folder(tmp_path), SPEC).pixels(slice(0, 1))


class Failing(Numbered):
    def __init__(self, item):
        super().__init__()
        self.item = item

    def __getitem__(self, index):
        if isinstance(self.item, Exception):
            raise self.item
        return self.item if index == 7 else super().__getitem__(index)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (ValueError("no disk"), "no disk"),
        (np.zeros((3, 4, 4)), "ndarray"),
        ((torch.zeros(3, 5, 4), 1), "different shapes"),
        ((torch.zeros(3, 4, 4), 5), "label 5"),
        ((torch.zeros(3, 4, 4), -1), "label -1"),
    ],
)
def test_an_item_that_cannot_be_used_is_one_error(item, said):
    with pytest.raises(InputError, match=said):
        list(DatasetBatches(Failing(item), 20, 0, classes=5)(0, 0))


def test_images_that_are_not_float_are_refused():
    with pytest.raises(InputError, match="float32"):
        list(DatasetBatches([torch.zeros(3, 4, 4, dtype=torch.uint8)] * 4, 2)(0, 0))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(3, 4, 4)])


def test_what_has_no_length_or_is_no_data_is_refused():
    with pytest.raises(InputError, match="length"):
        LoaderBatches(DataLoader(Stream()))
    with pytest.raises(InputError, match="not a set of images"):
        source_of(3, 8)
    with pytest.raises(InputError, match="empty"):
        source_of([], 8)


def test_what_a_path_cannot_mean_is_one_error(tmp_path):
    for name, said in (("none", "does not exist"), ("empty", "no images"), ("file.txt", "neither")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "file.txt").write_text("x")
        with pytest.raises(InputError, match=said):
            open_data(tmp_path / name, SPEC)
    with pytest.raises(InputError, match="not a class"):
        open_data(folder(tmp_path / "parts"), SPEC, class_names=("bolt", "washer"))
    with pytest.raises(InputError, match="too few"):
        open_data(folder(tmp_path / "few", 4), SPEC)
    np.savez(tmp_path / "d.npz", images=np.zeros((40, 8, 8, 3), np.uint8), labels=np.full(40, 9))
    with pytest.raises(InputError, match="label 9"):
        open_data(tmp_path / "d.npz", SPEC, class_names=("a", "b"))


# -- augmentation and sets in memory -------------------------------------------------------------------------------


def test_augmentation_without_any_change_is_the_identity():
    still = Augmentation(rotate_degrees=0, zoom=0, shift=0, flip=False, brightness=0)
    pixels = image_set(4).pixels(slice(0, 4))
    assert torch.allclose(still.apply(pixels, np.random.default_rng(0)), pixels, atol=1e-5)


def test_augmentation_stays_in_range():
    pixels = image_set(8).pixels(slice(0, 8))
    changed = Augmentation(brightness=0.9, zoom=0.5).apply(pixels, np.random.default_rng(0))
    assert changed.shape == pixels.shape
    assert 0 <= changed.min() <= changed.max() <= 1


@pytest.mark.parametrize("changes", [{"zoom": 1.0}, {"rotate_degrees": 200}, {"shift": -0.1}])
def test_an_augmentation_that_cannot_be_meant_is_refused(changes):
    with pytest.raises(InputError):
        Augmentation(**changes)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64)),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros(3, np.int64)),
        (np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int64)),
    ],
)
def test_an_image_set_that_does_not_fit_together_is_refused(images, labels):
    with pytest.raises(InputError):
        ImageSet(images, labels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
