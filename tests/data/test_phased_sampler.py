"""Several samplers in one run: the joined stream, where a phase ends, batches there, and bad phase lists."""

import itertools
import logging

import pytest
from omegaconf import OmegaConf

from longtail_det2.config import get_cfg
from longtail_det2.data.build import (
    TrainingStream,
    build_train_loader,
    build_train_loader_from_config,
    sampler_from_config,
)
from longtail_det2.data.datasets.dataset import MultiLabelDataset
from longtail_det2.data.samplers import (
    Phase,
    PhasedTrainingSampler,
    SoftBalanceTrainingSampler,
    UniformTrainingSampler,
    parse_phases,
    phases_of_run,
)
from longtail_det2.utils.errors import ConfigError, DataError

PHASES = [
    ["UniformTrainingSampler", 30],
    ["RepeatFactorTrainingSampler", 50, {"threshold": 0.4}],
    ["SoftBalanceTrainingSampler", 40, {"lambda_": 0.5}],
]
BATCH = 8
ENDS = [240, 640]
"""Images after which PHASES go on."""


@pytest.fixture
def dataset(random_store):
    return MultiLabelDataset(random_store, filter_empty=True)


@pytest.fixture
def make(dataset):
    def make(phases=PHASES, rank=0, world_size=1, **options):
        sampler = PhasedTrainingSampler.from_dataset(
            dataset, **{"seed": 3, "phases": phases, "batch_size": BATCH, **options}
        )
        sampler.rank, sampler.world_size = rank, world_size
        return sampler

    return make


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def image_id(record):
    return record["image_id"]


def shape(record):
    return record["image_id"], record["width"] > record["height"]


def test_the_stream_is_that_of_each_sampler_in_turn(make):
    phased = make()
    assert phased.boundaries == (*ENDS, 960)
    parts = [take(sampler, count) for sampler, count in zip(phased.samplers, (240, 400, 700), strict=True)]
    assert take(phased, 1340) == list(itertools.chain(*parts))  # the last one goes on without end
    assert 240 % len(set(parts[0]))  # the phase does not end with an epoch


def test_a_sampler_that_is_used_twice_does_not_repeat_itself(make):
    twice = make([["UniformTrainingSampler", 30], ["UniformTrainingSampler", 30]])
    stream = take(twice, 480)
    assert stream[:100] != stream[240:340]
    assert take(make([["UniformTrainingSampler", 30]] * 2, seed=4), 480) != stream


def test_seeds_of_phases_do_not_depend_on_their_lengths(make):
    longer = make([["UniformTrainingSampler", 31], *PHASES[1:]])
    assert take(longer, 600)[248:] == take(make(), 592)[240:]


def batches(dataset, count, mapper=shape, **options):
    options = {"sampler": "PhasedTrainingSampler", "phases": PHASES, "seed": 3, **options}
    loader = build_train_loader(dataset, mapper=mapper, total_batch_size=BATCH, **options)
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("grouping", [False, True])
def test_each_phase_has_its_images_in_its_own_iterations(dataset, make, grouping):
    stream = [dataset[index]["image_id"] for index in take(make(), 960)]
    found = batches(dataset, 120, aspect_ratio_grouping=grouping)
    assert all(len(batch) == BATCH for batch in found)
    ids = [[image for image, _ in batch] for batch in found]
    for begin, end in itertools.pairwise([0, 30, 80, 120]):
        drawn = sorted(itertools.chain(*ids[begin:end]))
        assert drawn == sorted(stream[begin * BATCH : end * BATCH])
    mixed = [number for number, batch in enumerate(found) if len({wide for _, wide in batch}) == 2]
    if grouping:
        assert set(mixed) <= {29, 79, 119}  # the last batch of a phase takes what has no partner
        assert mixed, "the data of this test should need it"
    else:
        assert len(mixed) > 50 and list(itertools.chain(*ids)) == stream


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_any_phase(dataset, grouping, workers):
    whole = batches(dataset, 100, aspect_ratio_grouping=grouping)
    for done in (0, 1, 29, 30, 31, 79, 80, 81, 95):
        options = {"aspect_ratio_grouping": grouping, "num_workers": workers, "start": done * BATCH}
        assert batches(dataset, min(5, 100 - done), **options) == whole[done : done + 5]


def test_ranks_group_by_themselves_and_keep_to_the_phases(dataset, make):
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


def test_from_a_config(dataset, caplog):
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = BATCH, 3
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.REPEAT_THRESHOLD = 0, 0.4
    cfg.DATALOADER.SAMPLER_TRAIN = "PhasedTrainingSampler"
    cfg.DATALOADER.SOFT_BALANCE.LAMBDA = 0.5
    # Options of a phase come before those of other keys; a phase without any takes these.
    cfg.DATALOADER.PHASES = (PHASES[0], PHASES[1][:2], [*PHASES[2][:2], {"ancestors": False}])
    with caplog.at_level(logging.INFO, "longtail_det2"):
        loader = build_train_loader_from_config(cfg, 29 * BATCH, mapper=shape, dataset=dataset)
    expected = batches(dataset, 55)[29:]
    assert list(itertools.islice(loader, 26)) == expected
    assert "sampled by PhasedTrainingSampler(UniformTrainingSampler, RepeatFactor" in caplog.text
    assert "SoftBalanceTrainingSampler(lambda_=0.5))" in caplog.text


def test_phases_of_a_lazy_config():
    node = OmegaConf.create({"phases": PHASES}).phases
    parsed = parse_phases(node, 120)
    assert parsed == parse_phases(PHASES) and parse_phases(parsed) == parsed
    assert [str(phase) for phase in parsed] == [name for name, *_ in PHASES]
    assert parsed[2].options == {"lambda_": 0.5} and type(parsed[2].options) is dict
    own = parse_phases([[UniformTrainingSampler, 2], Phase(SoftBalanceTrainingSampler, 3)], 5)
    assert [str(phase) for phase in own] == ["UniformTrainingSampler", "SoftBalanceTrainingSampler"]


U = "UniformTrainingSampler"


@pytest.mark.parametrize(
    ("phases", "named"),
    [
        (((U, 90), ("SoftBalanceTrainingSampler", 80)), "170 iterations.*SOLVER.MAX_ITER"),
        (((U, 190),), "190 iterations"),
        ((), "a list of phases"),
        ((U, 180), "phase 1"),
        (((U, 90), (U,)), "phase 2"),
        (((U, 0), (U, 180)), "phase 1"),
        (((U, 90.0), (U, 90)), "phase 1"),
        (((U, True), (U, 179)), "phase 1"),
        (((U, 180, 0.5),), "phase 1"),
        ((("PhasedTrainingSampler", 180),), "phase 1 is PhasedTrainingSampler itself"),
    ],
)
def test_bad_phase_lists(phases, named):
    with pytest.raises(ConfigError, match=rf"DATALOADER\.PHASES .*{named}"):
        phases_of_run("PhasedTrainingSampler", phases, 180)


def test_unknown_sampler_in_a_phase():
    with pytest.raises(ConfigError, match=r"unknown training sampler 'Nope'.*known are ClassAwareTraining"):
        parse_phases([["Nope", 3]])
    with pytest.raises(ConfigError, match="3 is not a subclass"):
        parse_phases([[3, 3]])


def test_phases_and_sampler_must_fit(dataset):
    assert phases_of_run("UniformTrainingSampler", ()) == phases_of_run({"a": "node"}, []) == ()
    with pytest.raises(ConfigError, match=r"DATALOADER\.PHASES .*SAMPLER_TRAIN"):
        phases_of_run("UniformTrainingSampler", PHASES, 120)
    cfg = get_cfg()
    cfg.DATALOADER.PHASES = tuple(PHASES)
    with pytest.raises(ConfigError, match="is set, but the sampler"):
        sampler_from_config(cfg, dataset, seed=0)
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.PHASES = "PhasedTrainingSampler", ()
    with pytest.raises(ConfigError, match="it must be a list of phases"):
        sampler_from_config(cfg, dataset, seed=0)
    with pytest.raises(ConfigError, match="phases is given, but the sampler is already made"):
        batches(dataset, 1, sampler=UniformTrainingSampler(3, 0))
    with pytest.raises(ConfigError, match="PhasedTrainingSampler has no option 'lambda_'"):
        batches(dataset, 1, sampler_options={"lambda_": 0.5})


def test_errors_of_the_phases_samplers_come_at_once(dataset, make_store, picture):
    """When the loader is built, not where the phase begins."""
    with pytest.raises(ConfigError, match=r"LAMBDA \(lambda_\) is 3"):
        batches(dataset, 1, phases=[[U, 9], ["SoftBalanceTrainingSampler", 9, {"lambda_": 3}]])
    with pytest.raises(ConfigError, match="SoftBalanceTrainingSampler has no option 'lam'"):
        batches(dataset, 1, phases=[["SoftBalanceTrainingSampler", 9, {"lam": 1}]])
    bare = MultiLabelDataset(make_store([picture("a", 8, 8)]))
    with pytest.raises(DataError, match="SoftBalanceTrainingSampler needs objects"):
        batches(bare, 1, phases=[[U, 9], ["SoftBalanceTrainingSampler", 9]])


def test_batch_size_of_the_sampler_and_of_the_loader(dataset, make):
    with pytest.raises(ConfigError, match=r"240 images.*batch size 9"):
        TrainingStream(dataset, image_id, make(), 9, 0)
    with pytest.raises(ValueError, match="shorter"):
        PhasedTrainingSampler([UniformTrainingSampler(3, 0)] * 3, [3, 4], 0)
