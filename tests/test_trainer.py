"""One training for a purpose of the search: splits, interruption, divergence."""

import dataclasses
import functools
import re
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scripts import run_on_devices

import cse_jax
from benchmarks.analysis import batch_of
from benchmarks.smallest import fcos_smallest
from cse_jax.language import spaces
from cse_jax.language.program import compile_expression
from cse_jax.search.task import LibraryLoss, LossPair
from cse_jax.search.trainer import OutOfMemory, Stopped
from detectors import checkpoint
from detectors.data.datasets import DataConfig, open_dataset
from detectors.data.digit_scenes import DigitScenesConfig
from detectors.data.pipeline import train_batches
from detectors.losses import DetectionLosses, resolve_pair, term
from detectors.models import build_detector, resnet
from detectors.models.detector import Detector
from detectors.models.fcos import FCOS
from detectors.training import batched, fitting, loop, pausing, search_trainer
from detectors.training.batched import jit_many, stack_losses
from detectors.training.run_config import training_in_seconds
from detectors.training.schedule import ScheduleConfig
from detectors.training.search_trainer import DetectorTrainer, task_of
from detectors.training.step import TrainConfig, jit_detector, learning_rate, optimiser_for

TASK = task_of(FCOS)
DEFAULT = TASK.default
NEVER = threading.Event()
BUILD = build_detector(fcos_smallest(10))[1]
TRAIN = dataclasses.replace(training_in_seconds(0.003, warmup_steps=2), batch_size=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    scenes = DigitScenesConfig(train_images=30, select_images=10, test_images=12)
    return open_dataset(DataConfig(digit_scenes=scenes, data_dir=str(tmp_path_factory.mktemp("data"))))


@pytest.fixture(scope="module")
def compiled():
    return jit_detector(BUILD, TRAIN)


@functools.cache
def many(**own):
    return jit_many(BUILD, TRAIN, **own)


@pytest.fixture(scope="module", autouse=True)
def compiled_for_all_trainers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_trainer, "jit_many", lambda build, config, **own: many(**own))
        yield


def make(compiled, data, folder, *, workers=0, own_starts=False, **schedule):
    lengths = ScheduleConfig(**(dict(probe=(2, 4), probe_at_once=3, overfit=4, proxy=(3, 6), final=12) | schedule))
    return DetectorTrainer(
        compiled,
        BUILD,
        TRAIN,
        data,
        lengths,
        is_output=FCOS.is_output,
        task=TASK,
        flip=0.0,
        workers=workers,
        seed=0,
        own_starts=own_starts,
        checkpoints=folder,
    )


def train(trainer, losses, purpose, *, seed=0, horizon=None, stop=NEVER):
    horizon = horizon or trainer.horizons(purpose)[-1]
    return trainer.train(losses, purpose=purpose, seed=seed, horizon=horizon, stop=stop)


def final_model(folder, compiled):
    (path,) = (p for p in folder.iterdir() if p.name.startswith("final-"))
    state = compiled.init(0)
    return checkpoint.restore(path, (state.params, state.rest))


def test_an_interrupted_training_goes_on_bit_for_bit(compiled, data, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = train(make(compiled, data, whole), [DEFAULT], "final", seed=1)

    stop, taken = threading.Event(), []

    def step(*arguments):
        taken.append(1)
        if len(taken) == 8:
            stop.set()
        return compiled.step(*arguments)

    trainer = make(compiled._replace(step=step), data, broken, save_every=5)
    with pytest.raises(Stopped, match="stopped at step 8"):
        train(trainer, [DEFAULT], "final", seed=1, stop=stop)
    assert [p.suffix for p in broken.iterdir()] == [".partial"]
    assert train(trainer, [DEFAULT], "final", seed=1) == expected
    assert len(taken) == 8 + (12 - 5), "the second attempt must begin at the checkpoint"
    assert not [p for p in broken.iterdir() if p.suffix == ".partial"]
    jax.tree.map(np.testing.assert_array_equal, final_model(broken, compiled), final_model(whole, compiled))


def test_trainings_take_their_batches_from_as_many_processes_as_are_asked_for(compiled, data, tmp_path, monkeypatch):
    def train_batches(*_, workers, **__):
        raise Stopped(f"{workers} workers")

    monkeypatch.setattr(loop, "train_batches", train_batches)
    trainer = make(compiled, data, tmp_path, workers=3, at_once=2)
    for losses in ([DEFAULT], [DEFAULT, DEFAULT]):
        with pytest.raises(Stopped, match="3 workers"):
            train(trainer, losses, "proxy")


def test_a_batch_is_on_its_way_while_the_step_before_it_runs(data):
    events = []

    def place(batch):
        events.append("placed")
        return batch.image_id.tolist()

    options = dict(batch_size=4, seed=0, flip=0.0)
    with loop.placed_batches(data.train, place, start=2, end=5, **options) as batches:
        ids = [(found, events.append("step"))[0] for found in batches]
    assert events == ["placed", "placed", "step", "placed", "step", "step"]
    plain = train_batches(data.train, start_step=2, **options)
    assert ids == [next(plain).image_id.tolist() for _ in range(3)]
    with loop.placed_batches(data.train, place, start=5, end=2, **options) as batches:
        assert not list(batches), "a training that is further already"


def test_the_number_to_train_at_once_is_measured_once(compiled, data, tmp_path, monkeypatch, capsys):
    """What one process has paused side by side another resumes so, and another search does not measure it again."""
    monkeypatch.setenv("CSE_JAX_DATA_DIR", str(tmp_path / "cache"))
    devices = [types.SimpleNamespace(platform="gpu", device_kind="a GPU")]
    memory = [1000]

    def asked(folder, measures, program="a program", **schedule):
        trainer = make(compiled, data, tmp_path / folder, **schedule)
        trainer._whole = trainer._whole._replace(lower=lambda *_: types.SimpleNamespace(as_text=lambda: program))
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "fitting_count", lambda *_: measures)
            patch.setattr(search_trainer.jax, "local_devices", lambda: devices)
            patch.setattr(fitting, "device_memory", lambda: memory[0])
            return trainer.at_once("proxy")

    assert asked("one", 4) == 4
    assert "three programs are compiled, which takes minutes" in capsys.readouterr().out
    assert asked("one", 16, "another program") == asked("another", 16) == 4 and not capsys.readouterr().out
    assert asked("a third", 16, "another program") == 16
    devices[0].device_kind = "another GPU"
    memory[0] = 2000
    assert asked("one", 16) == 16
    assert asked("one", 16, at_once=2) == 2
    (tmp_path / "cache" / "at_once.json").unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").touch()  # a folder that can't be written
    assert asked("a fourth", 8) == asked("a fourth", 16) == 8


def test_functions_are_trained_alone_beside_formulas(compiled, data, tmp_path, monkeypatch):
    """A function is no data: a compiled step takes it for itself."""
    named = dataclasses.replace(DEFAULT, box=LibraryLoss("diou_loss", spaces.BOX))
    half = dataclasses.replace(DEFAULT, cls_weight=0.5)
    trainer, asked = make(compiled, data, tmp_path, at_once=4), []

    def train_many(many, start, losses, *_):
        asked.append(losses)
        return [search_trainer.Training(0.1 * pair.cls_weight) for pair in losses]

    def train_one(losses, *_):
        asked.append(losses)
        return search_trainer.Training(0.7)

    monkeypatch.setattr(trainer, "_train_many", train_many)
    monkeypatch.setattr(trainer, "_train_one", train_one)
    assert [t.ap for t in train(trainer, [DEFAULT, named, half], "final")] == [0.1, 0.7, 0.05]
    assert asked == [[DEFAULT, half], named]
    asked.clear()
    train(trainer, [named, DEFAULT], "final")
    assert asked == [named, DEFAULT]


def on_devices(folder) -> None:
    """Run in a process with four simulated devices: what they train side by side is what one trains."""
    scenes = DigitScenesConfig(train_images=30, select_images=10, test_images=12)
    data = open_dataset(DataConfig(digit_scenes=scenes, data_dir=str(folder)))
    compiled = jit_detector(BUILD, TRAIN)
    trainer = make(compiled, data, folder, at_once=3)
    assert (trainer.at_once("probe"), trainer.at_once("proxy")) == (4, 4) and trainer._heads.devices == 4
    assert make(compiled, data, folder, at_once=1).at_once("proxy") == 1, "one whose batches all devices share"
    pairs = [LossPair(DEFAULT.cls, cse_jax.parse(text, spaces.BOX)) for text in FORMULAS]
    batch, losses, model = next(trainer._batches("probe", 0, 0)), trainer._padded(pairs, 8), compiled.init(0).model
    found = []
    for devices in (jax.devices(), jax.devices()[:1]):
        many = batched.jit_many(BUILD, TRAIN, own=FCOS.is_output, devices=devices)
        state = many.init(model, 8)
        for _ in range(3):
            state, metrics = many.step(state, many.place(batch), losses, 4, 0)
        for leaf in jax.tree.leaves((state.own, state.opt_state, metrics)):
            assert {len(shard.data) for shard in leaf.addressable_shards} == {8 // len(devices)}
        found.append(jax.device_get((state.own, metrics)))
        for program in (
            jax.jit(many.predict).lower(state, batch.image, batch.image_size),
            many.gradient.lower(state, batch, losses, jnp.int32(0)),
        ):
            assert ("manual_computation" in program.as_text()) == (len(devices) > 1), "each with its own rows"
        pausing.pause(state, 5, folder / "paused.npz")
        again = pausing.resumed(many.init(model, 8), [folder / "paused.npz"])
        for ours, theirs in zip(jax.tree.leaves(again.own), jax.tree.leaves(state.own), strict=True):
            np.testing.assert_array_equal(ours[7], theirs[5])
            assert ours.sharding == theirs.sharding
    assert found[0][1]["finite"].tolist() == [True, False] + [True] * 6
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), *found)


@pytest.mark.slow
def test_candidates_are_spread_over_the_devices(tmp_path):
    script = f"import pathlib, test_trainer; test_trainer.on_devices(pathlib.Path({str(tmp_path)!r}))"
    run_on_devices(4, script)


def test_trainings_begin_with_a_shared_start(compiled, data, tmp_path):
    """All but the output layers is what the default losses have learned; those are drawn anew with each seed."""
    begun = {}

    def step(state, *rest):
        if not int(state.step):
            begun.setdefault(int(rest[-1]), []).append(jax.tree.map(np.asarray, state.params))
        return compiled.step(state, *rest)

    trainer = make(compiled._replace(step=step), data, tmp_path, start=2, table=(1, 2), proxy=(1, 2))
    (first,) = train(trainer, [DEFAULT], "table", seed=1)
    (again,) = train(trainer, [DEFAULT], "table", seed=1)
    assert first == again
    train(trainer, [DEFAULT], "proxy", seed=2)
    fresh = {seed: compiled.init(seed).params for seed in (1, 2)}
    (start,), (one, same), (other,) = begun[0], begun[1], begun[2]
    jax.tree.map(np.testing.assert_array_equal, one, same)
    jax.tree.map(np.testing.assert_array_equal, start, compiled.init(0).params)
    kept = checkpoint.restore(tmp_path / "features", compiled.init(0).model)[0]
    for path, value in nnx.to_flat_state(one):
        expected = fresh[1] if FCOS.is_output(path) else kept
        np.testing.assert_array_equal(value[...], dict(nnx.to_flat_state(expected))[path][...], str(path))
    for path, value in nnx.to_flat_state(other):
        expected = fresh[2] if FCOS.is_output(path) else kept
        np.testing.assert_array_equal(value[...], dict(nnx.to_flat_state(expected))[path][...], str(path))


def test_final_trainings_may_begin_with_starts_of_their_own(compiled, data, tmp_path):
    """All losses of a seed with one start, which the default losses have trained from that seed."""
    begun = []

    def step(state, *rest):
        if not int(state.step):
            begun.append(jax.tree.map(np.asarray, state.params))
        return compiled.step(state, *rest)

    other = LossPair(DEFAULT.cls, cse_jax.parse("1 - i / u", spaces.BOX))
    own = make(compiled._replace(step=step), data, tmp_path, start=2, final=1, proxy=(1,), own_starts=True)
    for losses, purpose, seed in ((DEFAULT, "final", 1), (other, "final", 1), (other, "final", 2), (other, "proxy", 1)):
        train(own, [losses], purpose, seed=seed)
    assert {path.name for path in tmp_path.glob("features*")} == {"features", "features-seed1", "features-seed2"}
    starts, firsts = [begun[k] for k in (0, 3, 5)], [begun[k] for k in (1, 2, 4, 6)]
    for seed, start in zip((1, 2, 0), starts, strict=True):
        jax.tree.map(np.testing.assert_array_equal, start, compiled.init(seed).params)
    names = ("features-seed1", "features-seed1", "features-seed2", "features")
    for first, name in zip(firsts, names, strict=True):
        kept = dict(nnx.to_flat_state(checkpoint.restore(tmp_path / name, compiled.init(0).model)[0]))
        for path, value in nnx.to_flat_state(first):
            if not FCOS.is_output(path):
                np.testing.assert_array_equal(value[...], kept[path][...], str(path))


@pytest.mark.slow
def test_a_training_for_the_table_is_scored_on_both_splits(compiled, data, tmp_path):
    trainer = make(compiled, data, tmp_path, table=(4, 6, 12))
    (found,) = train(trainer, [DEFAULT], "table", seed=1)
    (final,) = train(trainer, [DEFAULT], "final", seed=1)
    curve = found.metrics["curve"]
    assert [step for step, *_ in curve] == [4, 6, 12]
    assert (curve[-1][1], curve[-1][2]) == (found.ap, final.ap)
    together = make(compiled, data, tmp_path / "many", table=(4, 6, 12), at_once=2)
    (beside, _) = train(together, [DEFAULT, DEFAULT], "table", seed=1)
    assert [step for step, *_ in beside.metrics["curve"]] == [4, 6, 12]
    np.testing.assert_allclose(beside.metrics["curve"], curve, atol=0.02)  # sums in another order, twelve steps long


def test_purposes_have_their_own_splits(compiled, data, tmp_path):
    trainer = make(compiled, data, tmp_path)
    seen = {}

    def watch(purpose):
        batches = []

        def predict(state, image, size):
            batches.append(len(image))
            return compiled.predict(state, image, size)

        trainer._compiled = compiled._replace(predict=predict)
        (training,) = train(trainer, [DEFAULT], purpose)
        seen[purpose] = len(batches)
        return training.ap, training.metrics

    for purpose in ("overfit", "proxy", "final"):
        ap, metrics = watch(purpose)
        assert 0.0 <= ap <= 1.0 and ("checkpoint" in metrics) == (purpose == "final")
    assert seen == {"overfit": 3, "proxy": 3, "final": 3}  # 10, 10 and 12 images in batches of 4
    trained_on, evaluated_on = trainer._splits["overfit"]
    assert trained_on is evaluated_on and len(trained_on) == 10
    assert trainer._splits["proxy"][1] is data.select and trainer._splits["final"][1] is data.test


def test_a_divergence_names_the_step_and_the_parts(compiled, data, tmp_path):
    bad = LossPair(DEFAULT.cls, cse_jax.parse("log(1 - 2) + i", spaces.BOX))
    (training,) = train(make(compiled, data, tmp_path), [bad], "proxy")
    assert training.ap is None
    assert re.fullmatch(r"not finite at step 1: box nan, .*loss nan.*", training.failure), training.failure


def test_detections_that_are_not_finite_are_a_failure_of_their_training(compiled, data, tmp_path):
    def predict(*arguments):
        found = compiled.predict(*arguments)
        return found._replace(scores=found.scores * jnp.nan, valid=jnp.ones_like(found.valid))

    trainer = make(compiled._replace(predict=predict), data, tmp_path, table=(2,), final=2)
    for purpose, horizon in [("proxy", 3), ("final", 2), ("table", 2)]:
        (training,) = train(trainer, [DEFAULT], purpose, horizon=horizon)
        assert (training.ap, training.failure) == (None, "a detection is not finite")
    assert not list(tmp_path.iterdir())


def test_a_paused_training_goes_on_bit_for_bit(compiled, data, tmp_path):
    (whole,) = train(make(compiled, data, tmp_path / "whole"), [DEFAULT], "proxy", seed=1)
    trainer = make(compiled, data, tmp_path / "paused")
    (first,) = train(trainer, [DEFAULT], "proxy", seed=1, horizon=3)
    assert first.ap is not None and [p.suffix for p in (tmp_path / "paused").iterdir()] == [".partial"]
    assert train(trainer, [DEFAULT], "proxy", seed=1) == [whole]
    train(trainer, [DEFAULT], "proxy", seed=1, horizon=3)
    trainer.forget(DEFAULT, purpose="proxy", seed=1)
    assert not list((tmp_path / "paused").iterdir())


@pytest.mark.slow
def test_a_paused_training_goes_on_whether_others_are_beside_it_or_not(compiled, data, tmp_path):
    half, steps = dataclasses.replace(DEFAULT, cls_weight=0.5), {"one": 0, "many": 0}

    def counting(name, step):
        def counted(*arguments):
            steps[name] += 1
            return step(*arguments)

        return counted

    trainer = make(compiled._replace(step=counting("one", compiled.step)), data, tmp_path, at_once=2)
    trainer._whole = trainer._whole._replace(step=counting("many", trainer._whole.step))
    whole = train(trainer, [DEFAULT, half], "proxy")
    train(trainer, [DEFAULT, half], "proxy", horizon=3)
    steps.update(one=0, many=0)
    assert train(trainer, [half], "proxy") == whole[1:] and steps == {"one": 0, "many": 3}
    trainer.forget(DEFAULT, purpose="proxy", seed=0)
    train(trainer, [DEFAULT], "proxy", horizon=3)
    assert steps == {"one": 3, "many": 3}
    train(trainer, [half, DEFAULT], "proxy")
    assert steps == {"one": 3 + 6 + 3, "many": 3} and not list(tmp_path.iterdir())


def test_the_features_are_the_default_losses_proxy_training(compiled, data, tmp_path):
    """Preparing them costs no training: the proxy task finds itself at its end, with the same score."""
    taken = []

    def step(*arguments):
        taken.append(1)
        return compiled.step(*arguments)

    trainer = make(compiled._replace(step=step), data, tmp_path / "prepared")
    train(trainer, [DEFAULT], "proxy", horizon=3)
    trainer.prepare()
    assert len(taken) == 6
    found = train(trainer, [DEFAULT], "proxy")
    trainer.prepare()
    assert len(taken) == 6 and [path.name for path in (tmp_path / "prepared").iterdir()] == ["features"]
    assert found == train(make(compiled, data, tmp_path / "plain"), [DEFAULT], "proxy")


def test_default_losses_that_diverge_leave_no_features(compiled, data, tmp_path, monkeypatch):
    bad = LossPair(DEFAULT.cls, cse_jax.parse("log(1 - 2) + i", spaces.BOX))
    taken = []

    def step(*arguments):
        taken.append(1)
        return compiled.step(*arguments)

    trainer = make(compiled._replace(step=step), data, tmp_path)
    monkeypatch.setattr(trainer, "task", types.SimpleNamespace(default=bad))
    trainer.prepare()
    assert not list(tmp_path.iterdir())
    assert "begins with diverged: not finite at step 1: box nan" in train(trainer, [DEFAULT], "probe")[0].failure
    assert len(taken) == 6
    assert train(trainer, [bad], "proxy")[0].failure

    started = make(compiled._replace(step=step), data, tmp_path, start=3, save_every=2)
    monkeypatch.setattr(started, "task", types.SimpleNamespace(default=bad))
    started.prepare()
    taken.clear()
    for purpose in ("proxy", "final"):
        first, second = train(started, [DEFAULT, bad], purpose)
        assert first == second and "begins with diverged: not finite at step 1: box nan" in first.failure
    assert not taken and not list(tmp_path.iterdir())


def test_a_device_that_is_too_small_is_no_fault_of_the_loss(compiled, data, tmp_path):
    def step(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    trainer = make(compiled._replace(step=step), data, tmp_path)
    with pytest.raises(OutOfMemory, match=r"too small for 1 training\(s\) at once.*--config.train.batch_size"):
        train(trainer, [DEFAULT], "proxy")


FORMULAS = ("1 - i / u", "log(1 - 2) + i", "1 - i / e")


@pytest.fixture(scope="module")
def prober(compiled, data, tmp_path_factory):
    return make(compiled, data, tmp_path_factory.mktemp("probes"))


@pytest.mark.slow
def test_heads_are_trained_on_the_features_of_the_default_losses(prober):
    """A probe is a training of nothing but the output layers: here against one made of jax.grad."""
    pairs = [LossPair(DEFAULT.cls, cse_jax.parse(text, spaces.BOX)) for text in FORMULAS]
    features, fresh = prober.features, prober._compiled.init(0).model
    trainings = train(prober, pairs, "probe")
    assert [bool(t.failure) for t in trainings] == [False, True, False]
    assert trainings[1].failure == "not finite at step 1"

    detector = nnx.eval_shape(lambda: BUILD(nnx.Rngs(0)))
    graph, _, _ = nnx.split(detector, nnx.Param, ...)
    own, _ = nnx.split_state(fresh[0], lambda path, _: FCOS.is_output(path), ...)
    _, shared = nnx.split_state(features[0], lambda path, _: FCOS.is_output(path), ...)
    optimiser = optimiser_for(TRAIN, own)
    opt_state, batches = optimiser.init(own), prober._batches("probe", 0, 0)
    losses = DetectionLosses(*(term(f, w) for f, w in ((pairs[0].cls, 1.0), (pairs[0].box, 1.0))))

    @jax.jit
    def gradient(own, batch):
        def total(own):
            model = nnx.merge(graph, nnx.merge_state(own, shared), features[1])
            return model.loss(batch, losses, key=jax.random.key(0))[0]

        return jax.grad(total)(own)

    for step in range(4):
        updates, opt_state = optimiser.update(gradient(own, next(batches)), opt_state, own)
        rate = learning_rate(TRAIN, jnp.int32(step), jnp.int32(4))
        own = optax.apply_updates(own, jax.tree.map(lambda u, rate=rate: -rate * u, updates))
    state = prober._heads.init(fresh, 3, features)
    batches = prober._batches("probe", 0, 0)
    for _ in range(4):
        state, _ = prober._heads.step(state, next(batches), prober._padded(pairs, 3), 4, 0)
    # Adam divides by the gradient's size, so rounding of tiny gradients is not tiny in the parameters.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-4), state.own, own)


def test_a_paused_probe_goes_on_and_neighbours_don_t_matter(prober, compiled, data):
    good = [LossPair(DEFAULT.cls, cse_jax.parse(text, spaces.BOX)) for text in FORMULAS[::2]]
    whole = train(prober, good, "probe")
    assert train(prober, good, "probe", horizon=2) != whole
    paused = [prober._paused(pair, "probe", 0) for pair in good]
    assert all(path.exists() for path in paused)
    steps = []
    again = make(compiled, data, prober._checkpoints)  # as another process would
    again._heads = again._heads._replace(step=lambda *about: steps.append(1) or prober._heads.step(*about))
    assert train(again, good[1:], "probe") == whole[1:] and len(steps) == 2
    paused[0].write_bytes(paused[0].read_bytes()[:-100])  # damaged: from the beginning
    assert train(again, good[:1], "probe") == whole[:1] and len(steps) == 2 + 4
    train(prober, good, "probe", horizon=2)
    prober.forget(good[0], purpose="probe", seed=0)
    assert [path.exists() for path in paused] == [False, True]


def test_what_was_paused_goes_on_without_being_traced_again(compiled, data, tmp_path):
    trainer, traced = make(compiled, data, tmp_path), []
    for purpose, horizon in (("proxy", 3), ("probe", 2)):
        train(trainer, [DEFAULT], purpose, horizon=horizon)
    jax.monitoring.register_event_duration_secs_listener(lambda *_, fun_name="", **__: traced.append(fun_name))
    try:
        jax.jit(lambda x: x * 1.7)(jnp.float32(1.0))
        for purpose in ("proxy", "probe"):
            train(trainer, [DEFAULT], purpose)
    finally:
        jax.monitoring.clear_event_listeners()
    assert "<lambda>" in traced and not {"step", "advance", "found"} & set(traced)


@pytest.mark.slow
def test_gradient_norms_scale_with_the_weights(prober):
    doubled = dataclasses.replace(DEFAULT, cls_weight=2.0)
    norms = prober.gradient_norms([DEFAULT, doubled, dataclasses.replace(DEFAULT, box_weight=3.0), DEFAULT])
    (cls, box), *others = norms
    assert cls > 0.0 and box > 0.0
    np.testing.assert_allclose(others, [(2 * cls, box), (cls, 3 * box), (cls, box)], rtol=1e-5)


def test_detectors_side_by_side_learn_what_they_learn_alone(compiled, data, tmp_path):
    pairs = [DEFAULT, LossPair(DEFAULT.cls, cse_jax.parse("1 - i / u", spaces.BOX))]
    alone = make(compiled, data, tmp_path / "alone")
    together = make(compiled, data, tmp_path / "together", at_once=2)
    assert (alone.at_once("proxy"), together.at_once("proxy")) == (1, 2)
    for horizon in (3, 6):
        one = [train(alone, [pair], "proxy", horizon=horizon)[0].ap for pair in pairs]
        both = [training.ap for training in train(together, pairs, "proxy", horizon=horizon)]
        np.testing.assert_allclose(one, both, atol=5e-3)


def test_the_authors_logarithms_are_asked_for_in_the_config():
    for stable in (True, False):
        trainer = types.SimpleNamespace(_config=TrainConfig(stable_logs=stable))
        found = DetectorTrainer._terms(trainer, DEFAULT), resolve_pair(DEFAULT.cls.space, stable=stable)
        expected = compile_expression(DEFAULT.cls, stable=stable)
        assert all((losses.cls.program.opcode == expected.opcode).all() for losses in found)
    assert (expected.opcode != compile_expression(DEFAULT.cls).opcode).any()


class Sloping(Detector):
    """Next to nothing to compile: its loss is the sum of one parameter's elements."""

    def __init__(self, rngs):
        self.backbone = nnx.Module()
        self.backbone.config = resnet.tiny()
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), 3))

    def loss(self, batch, losses, *, key):
        total = self.kernel.sum()
        return total, {"loss": total, "cls": total, "box": total}


def test_a_step_of_many_is_compiled_once(data, caplog):
    """For candidates that begin with a model of another place, or go on."""
    functions, config = jit_many(Sloping, TRAIN), TrainConfig(batch_size=4, optimiser="adamw")
    model = jit_detector(Sloping, config).init(0).model
    elsewhere = jax.tree.map(np.asarray, model)
    batch = next(train_batches(data.train, batch_size=4, seed=0, flip=0.0))
    losses = resolve_pair(FCOS.cls_space)
    with jax.log_compiles():
        for given in ((model,), (model, elsewhere), (elsewhere,)):
            state = functions.init(given[0], 2, *given[1:])
            for _ in range(2):
                state, _ = functions.step(state, functions.place(batch), stack_losses([losses] * 2), 9, 0)
    assert caplog.text.count("Finished XLA compilation of jit(advance)") == 1


@pytest.mark.slow
def test_memory_and_time_are_those_of_the_compiled_step(prober):
    about = next(prober._batches("proxy", 0, 0)), prober._terms(DEFAULT)
    model, said = prober._compiled.init(0).model, []
    three, six = (fitting._compiled_step(prober._heads, model, *about, said.append, count) for count in (3, 6))
    assert 0 < three.memory < six.memory < 2 * three.memory
    assert [line.split(":")[0] for line in said] == ["3 at once", "6 at once"]
    assert 0.0 < fitting._seconds(three, prober._heads, model, *about) < 60.0


@pytest.mark.parametrize(
    ("limit", "overhead", "expected", "counts"),
    [
        (1000, 1000, 8, [2, 4, 8]),
        (10**6, 1000, 64, [2, 4, 64]),
        (10**6, 3, 16, [2, 4, 64]),
        (10**6, 0, 1, [2, 4, 64]),
        (600, 1000, 4, [2, 4]),
        (200, 1000, 1, [2, 4]),
        (3500, 1000, 16, [2, 4, 32, 16]),
        (9000, 1000, 32, [2, 4, 64, 32]),
    ],
)
def test_as_many_side_by_side_as_fit_and_pay(monkeypatch, limit, overhead, expected, counts):
    """A step takes 100 bytes and 80 for each candidate, more from 30 on, and 60 don't compile; it lasts a second for
    each beside its overhead."""
    tried, said = [], []

    def compile_step(count):
        tried.append(count)
        if count > 60 and limit < 10**6:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")
        return 100 + 80 * count + 1000 * (count > 30)

    monkeypatch.setattr(fitting, "bytes_needed", lambda size: size)
    monkeypatch.setattr(fitting, "_seconds", lambda step, *_: overhead + step.count)
    many = jit_many(BUILD, TRAIN)._replace(
        lower=lambda model, count, *_: types.SimpleNamespace(compile=functools.partial(compile_step, count))
    )
    step = (nnx.State({}), nnx.State({})), batch_of(1, 32, 32), resolve_pair(DEFAULT.cls.space)
    assert fitting.fitting_count(many, *step, limit=limit, say=said.append) == expected
    assert tried == counts and len(said) == len(counts) and said[0].startswith("2 at once: 0.00 GiB")
    assert fitting.fitting_count(many, *step) == 1, "on a CPU one after the other"
