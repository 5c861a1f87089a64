import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T

from longtail_det2.config import get_cfg
from longtail_det2.data.build import (
    build_test_loader,
    build_train_loader,
    get_dataset,
    sampler_from_config,
)
from longtail_det2.data.dataset_mapper import MultiLabelDatasetMapper
from longtail_det2.data.datasets.builtin import register_store
from longtail_det2.data.datasets.dataset import ConcatMultiLabelDataset, MultiLabelDataset
from longtail_det2.data.samplers import (
    SAMPLER_REGISTRY,
    ClassAwareTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    UniformTrainingSampler,
    make_sampler,
)
from longtail_det2.utils.errors import ConfigError, DataError


@pytest.fixture
def dataset(random_store):
    return MultiLabelDataset(random_store, filter_empty=True)


@pytest.fixture
def mapper(pet_hierarchy):
    augmentations = [T.RandomCrop("absolute", (5, 5)), T.RandomFlip()]
    return MultiLabelDatasetMapper(True, augmentations=augmentations, hierarchy=pet_hierarchy)


def summary(loader, count):
    """What training sees of the first batches: ids, pixels (cropping and flipping show in them), boxes."""
    return [
        [
            (item["image_id"], item["image"][2, 0].tolist(), item["instances"].gt_boxes.tensor.tolist())
            for item in batch
        ]
        for batch in itertools.islice(loader, count)
    ]


def test_lists_are_loaded_once(dataset):
    records, calls = [dataset[index] for index in range(6)], []
    for name in ("one", "two"):
        DatasetCatalog.register(name, lambda name=name: calls.append(name) or list(records))
        MetadataCatalog.get(name).thing_classes = ["a"]
    records[0]["annotations"] = []
    assert len(get_dataset(["one", "two"], filter_empty=True)) == 10 and calls == ["one", "two"]
    DatasetCatalog.register("nothing", list)
    with pytest.raises(DataError, match="no image is left in nothing"):
        get_dataset("nothing")


def test_detectron2_loads_our_stores(store, mapper):
    """Its own loader, mapper and sampler take a registered store; our samplers work in its loader."""
    register_store("guest", store.path)
    cfg = detectron2_cfg()
    cfg.DATASETS.TRAIN, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = ("guest",), 2, 0
    for batch in itertools.islice(build_detection_train_loader(cfg), 3):
        assert all(len(item["instances"].gt_boxes) == len(item["instances"].gt_classes) for item in batch)
    dataset = get_dataset("guest", filter_empty=True)
    sampler = ClassAwareTrainingSampler.from_dataset(dataset, seed=0)
    expected = list(itertools.islice(sampler, 8))
    loader = build_detection_train_loader(
        dataset,
        mapper=_image_id,
        sampler=sampler,
        total_batch_size=1,
        aspect_ratio_grouping=False,
        num_workers=2,
    )
    found = [batch[0] for batch in itertools.islice(loader, 8)]
    assert found == [dataset[index]["image_id"] for index in expected]


@pytest.mark.parametrize("grouping", [False, True])
def test_training_does_not_depend_on_workers_and_resumes_exactly(dataset, mapper, grouping):
    def load(count, **options):
        options = {"sampler": "ClassAwareTrainingSampler", "seed": 7, **options}
        loader = build_train_loader(
            dataset, mapper=mapper, total_batch_size=4, aspect_ratio_grouping=grouping, **options
        )
        return summary(loader, count)

    expected = load(12)
    assert all(len(batch) == 4 for batch in expected)
    for workers in (1, 3):
        assert load(12, num_workers=workers) == expected
    for workers in (0, 2):
        assert load(7, num_workers=workers, start=5 * 4) == expected[5:]
    assert load(12, seed=8) != expected
    assert len({tuple(item[1]) for batch in expected for item in batch}) > 4  # augmentation varies


@pytest.mark.parametrize("plain", [False, True])
def test_grouping_separates_landscape_images(dataset, mapper, plain):
    data = [dataset[index] for index in range(40)] if plain else dataset
    loader = build_train_loader(data, mapper=mapper, total_batch_size=3, seed=1)
    shapes = [{item["width"] > item["height"] for item in batch} for batch in itertools.islice(loader, 40)]
    assert all(len(one) == 1 for one in shapes) and {True, False} <= set.union(*shapes)


def _image_id(record):
    return record["image_id"]


def test_the_training_process_keeps_its_random_numbers(dataset, mapper):
    def numbers():
        return (np.random.rand(), random.random(), torch.rand(1).item())  # noqa: NPY002

    for seed_all in (np.random.seed, random.seed, torch.manual_seed):
        seed_all(0)
    expected = [numbers(), numbers()]
    for seed_all in (np.random.seed, random.seed, torch.manual_seed):
        seed_all(0)
    loader = iter(build_train_loader(dataset, mapper=mapper, total_batch_size=2, seed=3, num_workers=0))
    observed = []
    for _ in range(2):
        next(loader)
        observed.append(numbers())
    # DataLoader itself draws one base seed from PyTorch when an iteration begins.
    assert [one[:2] for one in observed] == [one[:2] for one in expected]
    assert observed[0][2] != observed[1][2]


@pytest.mark.parametrize("grouping", [False, True])
def test_rejected_images_are_replaced_by_what_the_sampler_draws_next(dataset, grouping):
    def even_only(record):
        return record["image_id"] if int(record["image_id"]) % 2 == 0 else None

    def load(count, mapper=even_only, workers=0, **options):
        options = {"sampler": "ClassAwareTrainingSampler", "seed": 0, "num_workers": workers, **options}
        options = {"total_batch_size": 4, "aspect_ratio_grouping": grouping, **options}
        loader = build_train_loader(dataset, mapper=mapper, **options)
        return list(itertools.islice(loader, count))

    drawn = [one for batch in load(12, _image_id) for one in batch]
    batches = load(10)
    for number, batch in enumerate(batches):
        spare = iter(drawn[4 * number + 4 :])
        for wanted, found in zip(drawn[4 * number :], batch, strict=False):
            while int(wanted) % 2:
                wanted = next(spare)
            assert found == wanted
    assert load(10, workers=2) == batches
    assert load(4, start=24, workers=3) == batches[6:]
    with pytest.raises(DataError, match="rejected 20 images in a row"):
        load(1, lambda record: None, total_batch_size=1)


def test_loader_arguments(dataset, mapper):
    with pytest.raises(ConfigError, match="total batch size"):
        build_train_loader(dataset, mapper=mapper, total_batch_size=0)
    sampler = UniformTrainingSampler(len(dataset), 0)
    with pytest.raises(ConfigError, match="pass them to the sampler"):
        build_train_loader(dataset, mapper=mapper, sampler=sampler, total_batch_size=1, start=3)
    with pytest.raises(ConfigError, match="start=3 is no multiple of the total batch size 2"):
        build_train_loader(dataset, mapper=mapper, total_batch_size=2, seed=0, start=3)
    loader = build_train_loader(
        dataset, mapper=mapper, total_batch_size=2, seed=0, start=3, aspect_ratio_grouping=False
    )
    assert len(summary(loader, 2)) == 2


def test_sampler_by_name_class_and_config(dataset):
    assert isinstance(make_sampler("TrainingSampler", dataset, seed=0), UniformTrainingSampler)
    sampler = make_sampler(RepeatFactorTrainingSampler, dataset, seed=0, start=8, threshold=0.5)
    assert isinstance(sampler, RepeatFactorTrainingSampler) and sampler.start == 8
    cfg = get_cfg()
    assert isinstance(sampler_from_config(cfg, dataset, seed=0), UniformTrainingSampler)
    cfg.DATALOADER.SAMPLER_TRAIN = "ClassAwareTrainingSampler"
    assert repr(sampler_from_config(cfg, dataset, seed=0)) == "ClassAwareTrainingSampler"
    cfg.DATALOADER.CLASS_AWARE.NUM_SAMPLES_PER_CLASS, cfg.DATALOADER.CLASS_AWARE.REDUCE = 3, 2
    assert repr(sampler_from_config(cfg, dataset, seed=0)).endswith("(num_samples_per_class=3, reduce=2)")
    cfg.DATALOADER.SAMPLER_TRAIN = "SoftBalanceTrainingSampler"
    cfg.DATALOADER.SOFT_BALANCE.LAMBDA, cfg.DATALOADER.SOFT_BALANCE.ANCESTORS = 0.25, True
    assert repr(sampler_from_config(cfg, dataset, seed=0)).endswith("(lambda_=0.25, ancestors=True)")
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(ConfigError, match="REPEAT_THRESHOLD is 0"):
        sampler_from_config(cfg, dataset, seed=0)
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    from_config = sampler_from_config(cfg, dataset, seed=0, start=8)
    assert list(itertools.islice(from_config, 50)) == list(itertools.islice(sampler, 50))


def test_a_sampler_of_ones_own(dataset):
    class OneImage(TrainingSampler):
        @classmethod
        def from_dataset(cls, dataset, *, seed, start=0, which=0):
            sampler = cls(seed=seed, start=start)
            sampler.which = which
            return sampler

        def epoch_size(self, epoch):
            return 1

        def epoch_indices(self, epoch):
            return np.array([self.which], np.int32)

    SAMPLER_REGISTRY.register(OneImage)
    cfg = get_cfg()
    cfg.DATALOADER.SAMPLER_TRAIN = "OneImage"
    assert list(itertools.islice(sampler_from_config(cfg, dataset, seed=0, which=4), 3)) == [4, 4, 4]
    options = {"sampler": OneImage, "sampler_options": {"which": 1}, "total_batch_size": 2, "seed": 0}
    loader = build_train_loader(dataset, mapper=_image_id, **options)
    assert next(iter(loader)) == [dataset[1]["image_id"]] * 2
    with pytest.raises(ConfigError, match="OneImage has no option 'wich'"):
        make_sampler(OneImage, dataset, seed=0, wich=1)


def test_get_dataset(random_store, store, make_store, picture):
    register_store("r1", random_store.path)
    register_store("r2", random_store.path)
    one = get_dataset("r1")
    assert isinstance(one, MultiLabelDataset) and len(one) == 200
    both = get_dataset(["r1", "r2"], filter_empty=True)
    assert isinstance(both, ConcatMultiLabelDataset) and 200 < len(both) < 400
    register_store("other", make_store(class_ids=["x", *store.class_ids[1:]], parents=None).path)
    with pytest.raises(DataError, match="class 0 is 'animal' in r1 but 'x' in other"):
        get_dataset(["r1", "other"])
    with pytest.raises(DataError, match="unknown data set 'r3'"):
        get_dataset(["r1", "r3"])
    with pytest.raises(DataError, match="no data set is named"):
        get_dataset([])
    register_store("bare", make_store([picture("a", 8, 8)], name="bare").path)
    with pytest.raises(DataError, match="no image is left in bare with an object"):
        get_dataset("bare", filter_empty=True)
    DatasetCatalog.register("plain", lambda: [{"file_name": "x", "height": 2, "width": 3, "annotations": []}])
    MetadataCatalog.get("plain").thing_classes = ["a"]
    assert get_dataset("plain")[0]["width"] == 3
    with pytest.raises(DataError, match=r"cannot be joined: r1 \(MultiLabelDataset\), plain \(list\)"):
        get_dataset(["r1", "plain"])


def test_test_loader_batches(dataset):
    batches = list(build_test_loader(dataset, mapper=_image_id, batch_size=64))
    assert list(itertools.chain(*batches)) == [dataset[i]["image_id"] for i in range(len(dataset))]
