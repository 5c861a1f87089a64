"""Several samplers in one run: the joined stream, where a stage ends, batches there, and bad stage lists."""

import itertools
import logging

import numpy as np
import pytest
from omegaconf import OmegaConf

from longtail_det2.config import get_cfg
from longtail_det2.data.build import (
    TrainingStream,
    build_sampler,
    build_train_loader,
    build_train_loader_from_config,
)
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.samplers import (
    SoftBalanceTrainingSampler,
    Stage,
    StagedTrainingSampler,
    UniformTrainingSampler,
    parse_stages,
    stages_of_run,
)
from longtail_det2.utils.errors import ConfigError, DataError

STAGES = [
    ["UniformTrainingSampler", 30],
    ["RepeatFactorTrainingSampler", 50, {"threshold": 0.4}],
    ["SoftBalanceTrainingSampler", 40, {"lambda_": 0.5}],
]
BATCH = 8
ENDS = [240, 640]
"""Images after which STAGES go on."""


@pytest.fixture
def store(make_store, picture):
    """Long-tailed classes; a third of the images is landscape, a fifth has no object."""
    generator = np.random.default_rng(0)
    weights = 0.5 ** np.arange(6)
    pictures = []
    for number in range(200):
        labels = generator.choice(6, 2 * (number % 5 > 0), replace=False, p=weights / weights.sum())
        objects = [((0, 0, 4, 4), [label], 0) for label in labels.tolist()]
        pictures.append(picture(f"{number:03}", 8, 12 if number % 3 == 0 else 8, objects))
    return make_store(pictures)


@pytest.fixture
def dataset(store):
    return MultiLabelDataset(store, filter_empty=True)


@pytest.fixture
def make(dataset):
    def make(stages=STAGES, **options):
        return StagedTrainingSampler.from_dataset(
            dataset, **{"seed": 3, "stages": stages, "batch_size": BATCH, **options}
        )

    return make


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def image_id(record):
    return record["image_id"]


def shape(record):
    return record["image_id"], record["width"] > record["height"]


def test_the_stream_is_that_of_each_sampler_in_turn(make):
    staged = make()
    assert staged.boundaries == (*ENDS, 960)
    parts = [take(sampler, count) for sampler, count in zip(staged.samplers, (240, 400, 700), strict=True)]
    assert take(staged, 1340) == list(
        itertools.chain.from_iterable(parts)
    )  # the last one goes on without end
    assert 240 % len(set(parts[0]))  # the stage does not end with an epoch


def test_start_and_ranks_anywhere(make):
    stream = take(make(), 1500)
    starts = np.random.default_rng(0).integers(0, 1400, 20).tolist()
    for start in [0, 1, 239, 240, 241, 639, 640, 641, 999, *starts]:
        assert take(make(start=start), 60) == stream[start : start + 60]
        for world in (2, 3):
            for rank in range(world):
                part = take(make(start=start, rank=rank, world_size=world), 30)
                assert part == stream[start + rank :: world][:30]


def test_epochs_are_counted_through(make):
    staged = make()
    stream, position = take(staged, 70_000), 0
    for epoch in range(6):
        size = staged.epoch_size(epoch)
        indices = staged.epoch_indices(epoch)
        assert len(indices) == size and indices.dtype == np.int32
        assert indices[: 70_000 - position].tolist() == stream[position : position + size]
        assert staged.locate(position) == staged.locate(position + size - 1) == (epoch, position)
        position += size
    assert position > 65_536  # into the last stage


def test_counted_draws_over_boundaries(make, dataset):
    stream = take(make(), 1000)
    for begin, end in [(0, 240), (240, 640), (100, 700), (639, 641), (0, 1000)]:
        expected = np.bincount(stream[begin:end], minlength=len(dataset))
        assert np.array_equal(
            make(rank=1, world_size=2, start=9).draw_counts(begin, end, len(dataset)), expected
        )


def test_the_first_stage_is_a_run_with_that_sampler_alone(make, dataset):
    alone = build_sampler("UniformTrainingSampler", dataset, seed=3)
    assert take(make(), 240) == take(alone, 240)


def test_a_sampler_that_is_used_twice_does_not_repeat_itself(make):
    twice = make([["UniformTrainingSampler", 30], ["UniformTrainingSampler", 30]])
    stream = take(twice, 480)
    assert stream[:100] != stream[240:340]
    assert take(make([["UniformTrainingSampler", 30]] * 2, seed=4), 480) != stream


def test_seeds_of_stages_do_not_depend_on_their_lengths(make):
    longer = make([["UniformTrainingSampler", 31], *STAGES[1:]])
    assert take(longer, 600)[248:] == take(make(), 592)[240:]


def batches(dataset, count, mapper=shape, **options):
    options = {"sampler": "StagedTrainingSampler", "stages": STAGES, "seed": 3, **options}
    loader = build_train_loader(dataset, mapper=mapper, total_batch_size=BATCH, **options)
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("grouping", [False, True])
def test_each_stage_has_its_images_in_its_own_iterations(dataset, make, grouping):
    stream = [dataset[index]["image_id"] for index in take(make(), 960)]
    found = batches(dataset, 120, aspect_ratio_grouping=grouping)
    assert all(len(batch) == BATCH for batch in found)
    ids = [[image for image, _ in batch] for batch in found]
    for begin, end in itertools.pairwise([0, 30, 80, 120]):
        drawn = sorted(itertools.chain.from_iterable(ids[begin:end]))
        assert drawn == sorted(stream[begin * BATCH : end * BATCH])
    mixed = [number for number, batch in enumerate(found) if len({wide for _, wide in batch}) == 2]
    if grouping:
        assert set(mixed) <= {29, 79, 119}  # the last batch of a stage takes what has no partner
        assert mixed, "the data of this test should need it"
    else:
        assert len(mixed) > 50 and list(itertools.chain.from_iterable(ids)) == stream


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_any_stage(dataset, grouping, workers):
    whole = batches(dataset, 100, aspect_ratio_grouping=grouping)
    for done in (0, 1, 29, 30, 31, 79, 80, 81, 95):
        options = {"aspect_ratio_grouping": grouping, "num_workers": workers, "start": done * BATCH}
        assert batches(dataset, min(5, 100 - done), **options) == whole[done : done + 5]


def test_ranks_group_by_themselves_and_keep_to_the_stages(dataset, make):
    per_rank = []
    for rank in range(2):
        stream = TrainingStream(dataset, shape, make(rank=rank, world_size=2), BATCH // 2, 3, True)
        per_rank.append(list(itertools.islice(stream.batches(), 120)))
        for done in (31, 79, 100):
            sampler = make(rank=rank, world_size=2, start=done * BATCH)
            resumed = TrainingStream(dataset, shape, sampler, BATCH // 2, 3, True).batches()
            assert list(itertools.islice(resumed, 120 - done)) == per_rank[rank][done:]
    for begin, end in itertools.pairwise([0, 30, 80, 120]):
        draws = [draw for part in per_rank for batch in part[begin:end] for draw, _ in batch]
        assert sorted(draws) == list(range(begin * BATCH, end * BATCH))


def test_empty_images_come_in_the_natural_stage_only(store):
    """Soft-balance draws through classes, and an image without objects has none."""
    everything = MultiLabelDataset(store)
    stages = [["UniformTrainingSampler", 40], ["SoftBalanceTrainingSampler", 40]]
    found = batches(everything, 80, lambda record: len(record["annotations"]), stages=stages)
    empty = [sum(count == 0 for count in batch) for batch in found]
    assert sum(empty[:40]) > 40 and sum(empty[40:]) == 0


def test_from_a_config(dataset, caplog):
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = BATCH, 3
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.REPEAT_THRESHOLD = 0, 0.4
    cfg.DATALOADER.SAMPLER_TRAIN = "StagedTrainingSampler"
    cfg.DATALOADER.SOFT_BALANCE.LAMBDA = 0.5
    # Options of a stage come before those of other keys; a stage without any takes these.
    cfg.DATALOADER.STAGES = (STAGES[0], STAGES[1][:2], [*STAGES[2][:2], {"ancestors": False}])
    with caplog.at_level(logging.INFO, "longtail_det2"):
        loader = build_train_loader_from_config(cfg, 29 * BATCH, mapper=shape, dataset=dataset)
    expected = batches(dataset, 55)[29:]
    assert list(itertools.islice(loader, 26)) == expected
    assert "sampled by StagedTrainingSampler(UniformTrainingSampler, RepeatFactor" in caplog.text
    assert "SoftBalanceTrainingSampler(lambda_=0.5))" in caplog.text


def test_stages_of_a_lazy_config():
    node = OmegaConf.create({"stages": STAGES}).stages
    parsed = parse_stages(node, 120)
    assert parsed == parse_stages(STAGES) and parse_stages(parsed) == parsed
    assert [str(stage) for stage in parsed] == [name for name, *_ in STAGES]
    assert parsed[2].options == {"lambda_": 0.5} and type(parsed[2].options) is dict
    own = parse_stages([[UniformTrainingSampler, 2], Stage(SoftBalanceTrainingSampler, 3)], 5)
    assert [str(stage) for stage in own] == ["UniformTrainingSampler", "SoftBalanceTrainingSampler"]


KEY = "DATALOADER.STAGES (dataloader.train.stages)"
U = "UniformTrainingSampler"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            ((U, 90), ("SoftBalanceTrainingSampler", 80)),
            f"{KEY}: the stages last 90 + 80 = 170 iterations, but SOLVER.MAX_ITER (train.max_iter) is 180; "
            "both must be the same",
        ),
        (
            ((U, 190),),
            f"{KEY}: the stages last 190 iterations, but SOLVER.MAX_ITER (train.max_iter) is 180; both must "
            "be the same",
        ),
        ((), f'{KEY} is (); it must be a list of stages, each such as ["UniformTrainingSampler", 90000]'),
        (
            (U, 180),
            f"{KEY}: stage 1 is 'UniformTrainingSampler'; a stage is a sampler and its iterations, "
            '["UniformTrainingSampler", 90000], and may have the sampler\'s options as a third entry',
        ),
        (
            ((U, 90), (U,)),
            f"{KEY}: stage 2 is ('UniformTrainingSampler',); a stage is a sampler and its iterations, "
            '["UniformTrainingSampler", 90000], and may have the sampler\'s options as a third entry',
        ),
        (((U, 0), (U, 180)), f"{KEY}: stage 1 has 0 iterations; it must be a whole number, at least 1"),
        (((U, 90.0), (U, 90)), f"{KEY}: stage 1 has 90.0 iterations; it must be a whole number, at least 1"),
        (((U, True), (U, 179)), f"{KEY}: stage 1 has True iterations; it must be a whole number, at least 1"),
        (
            ((U, 180, 0.5),),
            f'{KEY}: the options of stage 1 are 0.5; they are a mapping such as {{"lambda_": 0.5}}',
        ),
        (
            (("StagedTrainingSampler", 180),),
            f"{KEY}: stage 1 is StagedTrainingSampler itself; name a single sampler",
        ),
    ],
)
def test_bad_stage_lists(stages, message):
    with pytest.raises(ConfigError) as caught:
        stages_of_run("StagedTrainingSampler", stages, 180)
    assert str(caught.value) == message


def test_unknown_sampler_in_a_stage():
    with pytest.raises(ConfigError, match=r"unknown training sampler 'Nope'.*known are ClassAwareTraining"):
        parse_stages([["Nope", 3]])
    with pytest.raises(ConfigError, match="3 is not a subclass"):
        parse_stages([[3, 3]])


def test_stages_and_sampler_must_fit(dataset):
    assert stages_of_run("UniformTrainingSampler", ()) == stages_of_run({"a": "node"}, []) == ()
    with pytest.raises(ConfigError) as caught:
        stages_of_run("UniformTrainingSampler", STAGES, 120)
    assert str(caught.value) == (
        f"{KEY} is set, but the sampler (DATALOADER.SAMPLER_TRAIN, dataloader.train.sampler) is "
        "'UniformTrainingSampler': to train in stages set it to 'StagedTrainingSampler', else make the "
        "stages empty"
    )
    cfg = get_cfg()
    cfg.DATALOADER.STAGES = tuple(STAGES)
    with pytest.raises(ConfigError, match="is set, but the sampler"):
        build_sampler(cfg, dataset, seed=0)
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.STAGES = "StagedTrainingSampler", ()
    with pytest.raises(ConfigError, match="it must be a list of stages"):
        build_sampler(cfg, dataset, seed=0)
    with pytest.raises(ConfigError, match="stages is given, but the sampler is already made"):
        batches(dataset, 1, sampler=UniformTrainingSampler(3, 0))
    with pytest.raises(ConfigError, match="StagedTrainingSampler has no option 'lambda_'"):
        batches(dataset, 1, sampler_options={"lambda_": 0.5})


def test_errors_of_the_stages_samplers_come_at_once(dataset, make_store, picture):
    """When the loader is built, not where the stage begins."""
    with pytest.raises(ConfigError, match=r"LAMBDA \(lambda_\) is 3"):
        batches(
            dataset,
            1,
            stages=[["UniformTrainingSampler", 9], ["SoftBalanceTrainingSampler", 9, {"lambda_": 3}]],
        )
    with pytest.raises(ConfigError, match="SoftBalanceTrainingSampler has no option 'lam'"):
        batches(dataset, 1, stages=[["SoftBalanceTrainingSampler", 9, {"lam": 1}]])
    bare = MultiLabelDataset(make_store([picture("a", 8, 8)]))
    with pytest.raises(DataError, match="SoftBalanceTrainingSampler needs objects"):
        batches(bare, 1, stages=[["UniformTrainingSampler", 9], ["SoftBalanceTrainingSampler", 9]])


def test_batch_size_of_the_sampler_and_of_the_loader(dataset, make):
    with pytest.raises(ConfigError) as caught:
        TrainingStream(dataset, image_id, make(), 9, 0)
    assert str(caught.value) == (
        "a phase of StagedTrainingSampler(UniformTrainingSampler, RepeatFactorTrainingSampler, "
        "SoftBalanceTrainingSampler(lambda_=0.5)) ends after 240 images, which is no multiple of the total "
        "batch size 9: make the sampler for this batch size"
    )
    with pytest.raises(ConfigError, match=r"2 samplers with the lengths \[3\]"):
        StagedTrainingSampler([UniformTrainingSampler(3, 0)] * 2, [3], 0)
