"""Workloads by name and the user's own, and names, weights and data that do not fit."""

from __future__ import annotations

import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simulator import ArrayConfig
from simulator.errors import InputError
from training.data import datasets, workloads
from training.data.batches import Augmentation, Batches
from training.data.datasets import Dataset, load_data
from training.data.digits import LARGEST_SHIFT, accuracy
from training.data.networks import LeNet5
from training.data.workloads import CALIBRATION_BATCH, CALIBRATION_IMAGES, WORKLOADS, check_fits, load_workload
from training.layers.accelerator import Accelerator
from training.layers.convert import convert
from training.layers.deployment import Deployment, write_deployed


def write_data(path, *shape, classes=10, count=12):
    generator = np.random.default_rng()
    np.savez(
        path,
        images=generator.integers(0, 256, (count, *shape), dtype=np.uint8),
        labels=np.append(generator.integers(0, classes, count - 1), classes - 1),
    )
    return path


def write_fashion_mnist(folder: Path) -> None:
    """A small data set under the names of the real one."""
    folder.mkdir()
    generator = np.random.default_rng()
    for prefix, count in (("train", 20), ("t10k", 10)):
        for part, shape in (("images", (count, 28, 28)), ("labels", (count,))):
            values = generator.integers(0, 10, shape, dtype=np.uint8)
            header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            (folder / f"{prefix}-{part}-idx{len(shape)}-ubyte").write_bytes(header + values.tobytes())


def test_the_packaged_workload_needs_nothing():
    network, calibration, test, train, deployment = load_workload("digits-cnn")
    assert deployment is None
    assert train is None
    assert not network.training
    assert [len(batch) for batch in calibration] == [CALIBRATION_BATCH] * (CALIBRATION_IMAGES // CALIBRATION_BATCH)
    assert len(test) == 360
    held_out = {image.numpy().tobytes() for image in test.images}
    assert not any(image.numpy().tobytes() in held_out for batch in calibration for image in batch)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("lenet5", (28, 28), 10),
        ("lenet5", (32, 32, 3), 26),
        ("resnet20", (32, 32, 3), 10),
        ("digits-cnn", (12, 12), 10),
    ],
)
def test_networks_take_the_shape_of_the_data(tmp_path, name, shape, classes):
    channels = shape[2] if len(shape) == 3 else 1
    source = WORKLOADS[name].build(channels, shape[0], classes)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    data = write_data(tmp_path / "data.npz", *shape, classes=classes)
    network, calibration, test, *_ = load_workload(name, tmp_path / "weights.pt", data)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in network.state_dict().items())
    assert sum(map(len, calibration)) == len(test) == 12
    assert network(test.images).shape == (12, classes)


def test_pixels_are_normalised_as_the_network_wants_them(tmp_path):
    data = write_data(tmp_path / "data.npz", 32, 32, 3)
    torch.save(WORKLOADS["resnet20"].build(3, 32, 10).state_dict(), tmp_path / "weights.pt")
    _, calibration, test, *_ = load_workload("resnet20", tmp_path / "weights.pt", data)
    pixels = np.load(data)["images"].transpose(0, 3, 1, 2) / 255
    mean, std = (np.array(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for images in (test.images, calibration[0]):
        assert np.allclose(images.numpy(), (pixels - mean) / std, atol=1e-5)


def test_lenet5_classifies_fashion_mnist_if_no_data_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion_mnist(folder / "data")
    monkeypatch.setenv("EFAT_DATA", "data")
    torch.save(LeNet5().state_dict(), "weights.pt")
    loaded = load_workload("lenet5", "weights.pt", training=True)
    assert (loaded.test.name, len(loaded.test)) == ("fashion-mnist", 10)
    assert loaded.train is not None
    assert len(loaded.train) == 20


@pytest.mark.parametrize("count", [12, CALIBRATION_IMAGES, CALIBRATION_IMAGES + 75])
def test_training_images_are_loaded_once_if_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    write_data("train.npz", 8, 8, 3, count=count)
    write_data("test.npz", 8, 8, 3)
    torch.save(WORKLOADS["resnet20"].build(3, 8, 10).state_dict(), "weights.pt")
    normalization = WORKLOADS["resnet20"].normalization
    read = []

    def noting(source: str | Path, split: datasets.Split, **options: object) -> Dataset:
        read.append(split)
        return load_data(source, split, **options)

    monkeypatch.setattr(workloads, "load_data", noting)
    loaded = load_workload("resnet20", "weights.pt", folder, training=True)
    assert sorted(read) == ["test", "train"]
    assert loaded.train is not None
    assert loaded.train.digest == load_data(folder, "train", normalization=normalization).digest
    assert loaded.test.digest == load_data(folder, "test", normalization=normalization).digest
    evenly = load_data(folder, "train", limit=CALIBRATION_IMAGES, normalization=normalization).images
    without = load_workload("resnet20", "weights.pt", folder)
    assert without.train is None
    for calibration in (loaded.calibration, without.calibration):
        assert torch.equal(torch.cat(calibration), evenly)
        assert max(map(len, calibration)) <= CALIBRATION_BATCH


def test_training_wants_images_that_are_not_trained_on(own_module: str) -> None:
    torch.save(LeNet5(1, 28, 10).state_dict(), "weights.pt")
    for name, weights in (("lenet5", "weights.pt"), (f"{own_module}:build", None)):
        with pytest.raises(InputError, match=r"data\.npz is one file .* give a folder with train\.npz and test\.npz"):
            load_workload(name, weights, "data.npz", training=True)
    Path("data").mkdir()
    write_data("data/train.npz", 6, 6, count=20, classes=4)
    write_data("data/test.npz", 6, 6, classes=4)
    loaded = load_workload(f"{own_module}:build", data="data", training=True)
    assert loaded.train is not None
    assert loaded.train.digest == load_data("data", "train").digest


@pytest.mark.parametrize(("train", "test"), [(13, 11), (11, 13), (4, 3)])
def test_a_network_has_the_classes_of_training_and_test(folder: Path, train: int, test: int) -> None:
    write_data("train.npz", 28, 28, classes=train)
    write_data("test.npz", 28, 28, classes=test)
    classes = max(train, test, 10)
    torch.save(LeNet5(1, 28, classes).state_dict(), "weights.pt")
    for training in (False, True):
        loaded = load_workload("lenet5", "weights.pt", folder, training=training)
        assert loaded.network(loaded.test.images).shape == (12, classes)


def test_augmentation_suits_what_a_network_was_designed_for() -> None:
    assert WORKLOADS["digits-cnn"].augmentation == Augmentation(crop_padding=LARGEST_SHIFT)
    for workload in WORKLOADS.values():
        data = Dataset("random", torch.rand(4, *workload.input_shape), torch.tensor([0, 1, 2, 3]), 4)
        assert Batches(data, 4, 1, workload.augmentation).at(0)[0].shape == data.images.shape
        # Mirrored digits and letters are others; pictures of things are not.
        assert workload.augmentation.flip == (workload.input_shape[0] == 3)


class Watched(nn.Module):
    """Notes how it was run, and gives as many scores as asked for."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout()
        self.classes = classes
        self.ran: list[tuple[bool, bool, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the first pixels."""
        self.ran.append((self.training or self.dropout.training, torch.is_grad_enabled(), len(x)))
        return self.dropout(self.normalize(x)).flatten(1)[:, : self.classes]


@pytest.mark.parametrize("count", [1, 5])
def test_networks_that_fit_are_left_as_they_were(count: int) -> None:
    data = Dataset("five", torch.rand(count, 3, 4, 4), torch.zeros(count, dtype=torch.int64), classes=4)
    for classes in (4, 10):
        network = Watched(classes).train()
        network.dropout.eval()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        check_fits(network, data, "mine")
        assert network.ran == [(False, False, 2), (False, False, 1)]
        assert [module.training for module in network.modules()] == [True, True, False]
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Unfit(nn.Module):
    """Gives the same whatever it is given."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        """What it was made to give."""
        return self.output


class Squeezes(nn.Module):
    """Loses the dimension of a single image."""

    def forward(self, x: Tensor) -> Tensor:
        """Ten pixels."""
        return x.flatten(1)[:, :10, None].squeeze()


class Subtracts(nn.Module):
    """Normalises in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Ten pixels."""
        x -= 0.5
        return x.flatten(1)[:, :10]


class Raises(nn.Module):
    """Fails."""

    def forward(self, x: Tensor) -> Tensor:
        """Nothing."""
        raise ValueError("no")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (LeNet5(1, 28), r"mine does not take the 3x28x28 images of six: .*expected input\[2, 3, 28, 28\] to have 1 ch"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(9, 10)),
            r"the 3x28x28 images of six: RuntimeError: mat1 and mat2 .* \(in layer '1'\)",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 5)), "mine has 5 classes and six has 6: expected at least"),
        (nn.Conv2d(3, 10, 3), r"mine gives torch.float32 \[2, 10, 26, 26\] for 2 images: expected floats \[2, classes"),
        (nn.Flatten(0), r"mine gives torch.float32 \[4704\] for 2 images"),
        (Unfit(torch.zeros(1, 10)), r"mine gives torch.float32 \[1, 10\] for 2 images"),
        (Unfit(torch.zeros(2, 10).long()), r"mine gives torch.int64 \[2, 10\] for 2 images"),
        (Unfit([1, 2]), "mine gives list of int, int for 2 images: .*; return the scores alone"),
        (Unfit((torch.zeros(2, 10), None)), r"gives tuple of torch.float32 \[2, 10\], NoneType for 2 images"),
        (
            Unfit({"logits": torch.zeros(2, 10)}),
            "mine gives dict of 'logits' for 2 images: .*; return the scores",
        ),
        (Unfit(None), "mine gives NoneType for 2 images: .*; return them from its forward"),
        (Squeezes(), r"mine gives torch.float32 \[10\] for 1 image: .*Flatten\(1\), or squeeze only others"),
        (Subtracts(), "mine writes into the images that it is given"),
        (nn.Sequential(nn.Flatten(), Raises()), r"ValueError: no \(in layer '1' at \S*test_workloads.py:\d+\)"),
    ],
)
def test_networks_that_do_not_fit(network: nn.Module, message: str) -> None:
    data = Dataset("six", torch.rand(3, 3, 28, 28), torch.zeros(3, dtype=torch.int64), classes=6)
    with pytest.raises(InputError, match=message) as caught:
        check_fits(network.train(), data, "mine")
    assert "\n" not in str(caught.value)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("name", "weights", "data", "message"),
    [
        (
            "alexnet",
            None,
            None,
            "'alexnet' is unknown: choose one of digits-cnn, lenet5, vgg11, resnet20, resnet18, or",
        ),
        ("resnet20", None, None, "'resnet20' comes without weights and data: give a path"),
        ("resnet20", "weights.pt", None, "'resnet20' comes without data"),
        ("resnet20", None, "data.npz", "'resnet20' comes without weights"),
        ("lenet5", None, None, "'lenet5' comes without weights: give a path"),
        ("lenet5", "weights.pt", "wide.npz", "wide.npz has images of 28x30 pixels: network 'lenet5' wants square ones"),
        (
            "lenet5",
            "weights.pt",
            "data.npz",
            r"does not fit lenet5 for 1x28x28 images and 10 classes: 10 missing \(conv1",
        ),
        ("digits-cnn", None, "data.npz", "1 of another shape .linear1.weight is .48, 192., expected .48, 2352.."),
        ("digits-cnn", None, "tiny.npz", "images of 3x3 pixels are too small for DigitsCnn"),
    ],
)
def test_names_weights_and_data_that_do_not_fit(tmp_path, monkeypatch, name, weights, data, message):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data.npz", 28, 28)
    write_data(tmp_path / "wide.npz", 28, 30)
    write_data(tmp_path / "tiny.npz", 3, 3)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputError, match=message) as caught:
        load_workload(name, weights, data)
    assert "\n" not in str(caught.value)


def test_train_and_test_images_must_have_one_shape(tmp_path):
    write_data(tmp_path / "train.npz", 28, 28)
    write_data(tmp_path / "test.npz", 32, 32)
    with pytest.raises(InputError, match="expected the same shape"):
        load_workload("lenet5", tmp_path / "weights.pt", tmp_path)


def test_files_that_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such data"):
        load_workload("lenet5", tmp_path / "weights.pt", tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_workload("lenet5", tmp_path / "weights.pt", write_data(tmp_path / "data.npz", 28, 28))


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's in the current folder."""
    (tmp_path / "my_network_module.py").write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(5)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4))\n"
        "def number():\n    return 7\n"
        "def fails():\n    raise RuntimeError('two\\nlines')\n"
        "constant = 3\n"
    )
    (tmp_path / "my_broken_module.py").write_text("1 / 0\n")
    (tmp_path / "my_other_module.py").write_text("import math\nmath.pie\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write_data(tmp_path / "data.npz", 6, 6, classes=4)
    return "my_network_module"


def test_your_own_network(own_module, tmp_path):
    network, calibration, test, *_ = load_workload(f"{own_module}:build", data="data.npz")
    assert not network.training
    assert network(test.images).shape == (12, 4)
    assert torch.equal(calibration[0], test.images)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    loaded = load_workload(f"{own_module}:build", "weights.pt", "data.npz").network
    assert torch.equal(loaded[1].weight, other[1].weight)
    assert not torch.equal(loaded[1].weight, network[1].weight)


def write_deployment(path: Path, network: nn.Module) -> Deployment:
    """Write the weights of a network with made-up scales, for an array of which one PE is bypassed."""
    config = ArrayConfig(4, 3)
    layers = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    bypass = np.arange(12).reshape(4, 3) == np.random.default_rng().integers(12)
    deployment = Deployment(config.record, bypass, dict.fromkeys(layers, 0.5), {})
    write_deployed(path, network.state_dict(), deployment, {"chip": "chip-7"})
    return deployment


def test_weights_that_say_how_they_sit_on_a_chip(own_module: str, tmp_path: Path) -> None:
    write_data("digits.npz", 8, 8)
    write_data("large.npz", 28, 28)
    for name, data in (("digits-cnn", "digits.npz"), (f"{own_module}:build", "data.npz")):
        source = load_workload(name, data=data).network
        for value in source.parameters():
            nn.init.normal_(value)
        written = write_deployment(tmp_path / "chip.safetensors", source)
        loaded = load_workload(name, "chip.safetensors", data)
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in loaded.network.state_dict().items())
        assert loaded.deployment is not None
        assert (loaded.deployment.bypass == written.bypass).all()
        assert loaded.deployment.activation_scales == written.activation_scales
        assert loaded.deployment.about == {"chip": "chip-7"}
        with pytest.raises(InputError, match=r"chip\.safetensors does not fit lenet5"):
            load_workload("lenet5", "chip.safetensors", "large.npz")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_network_module:build", "is your own and has no data"),
        ("my_missing_module:build", "cannot be imported: No module named 'my_missing_module'"),
        ("my_network_module:missing", "module 'my_network_module' has no 'missing'"),
        ("my_network_module:constant", "is a int: expected a function"),
        ("my_network_module:number", "returned a int: expected a torch.nn.Module"),
        ("my_network_module:fails", "the call raised RuntimeError: two"),
        ("my_broken_module:build", r"import raised ZeroDivisionError: .* \(at my_broken_module.py:1\)"),
        ("my_other_module:build", r"import raised AttributeError: .* \(at my_other_module.py:2\)"),
        ("my_network_module:", "expected package.module:function"),
        (":build", "expected package.module:function"),
        ("mine/nets.py:build", "expected package.module:function, such as nets.mine:network, and no path"),
    ],
)
@pytest.mark.usefixtures("own_module")
def test_your_own_network_that_does_not_work(name, message):
    with pytest.raises(InputError, match=message) as caught:
        load_workload(name, data=None if "no data" in message else "data.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_published_resnet20_keeps_its_accuracy_in_8_bits(tmp_path):
    folder = Path(os.environ.get("EFAT_DATA", ""))
    weights, archive = folder / "models" / "resnet20-12fca82f.th", folder / "data" / "cifar10-jpeg" / "test.npz"
    if not weights.is_file() or not archive.is_file():
        pytest.skip("EFAT_DATA names no folder with a pretrained ResNet-20 and CIFAR-10 in it")
    images = pytest.importorskip("PIL.Image")
    stored = np.load(archive)
    count = 500
    decoded = [
        np.asarray(images.open(io.BytesIO(stored["jpeg"][start:stop].tobytes())))
        for start, stop in zip(stored["offsets"][:count], stored["offsets"][1 : count + 1], strict=True)
    ]
    np.savez(tmp_path / "data.npz", images=np.stack(decoded), labels=stored["labels"][:count])
    network, calibration, test, *_ = load_workload("resnet20", weights, tmp_path / "data.npz")
    config = ArrayConfig(32, 32)
    converted = convert(network, config, calibration, accelerator=Accelerator(config, engine="exact"))
    in_float, in_int8 = accuracy(network, test), accuracy(converted, test)
    print(f"ResNet-20 on {count} of CIFAR-10 (JPEG q75): {in_float:.1%} in float, {in_int8:.1%} in int8")  # noqa: T201
    assert in_float > 0.76  # 81.0 % on all 10,000, and 500 give or take 5 %
    assert abs(in_float - in_int8) <= 0.02


def test_accuracy_counts_correct_predictions():
    data = Dataset("four", torch.eye(4).view(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]), 4)
    assert accuracy(nn.Flatten(), data) == 0.75


def test_lenet5_is_the_builder_of_lenet5():
    assert isinstance(WORKLOADS["lenet5"].build(1, 28, 10), LeNet5)
