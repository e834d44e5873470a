"""Screening in bulk: the graph engine against formulas one by one, and long runs against interruption."""

import contextlib
import dataclasses
import itertools
import os
import random
import signal
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from populations import descendants, random_expressions
from scripts import run, start

from cse_jax.atlas import stream
from cse_jax.atlas.stream import _grow_and_filter, may_pass_finer_grid, screen_batches
from cse_jax.atlas.survivors import Survivors, SurvivorsError, read_survivors
from cse_jax.errors import InputError
from cse_jax.language import graph as graphs
from cse_jax.language import zoo
from cse_jax.language.expression import Expression, to_authors
from cse_jax.language.float64 import float64
from cse_jax.language.population import PAD, decode, encode, hashes
from cse_jax.language.spaces import BOX, MULTI_CLASS, SPACES, trajectories
from cse_jax.sampling.random_graphs import grow, tokens_of
from cse_jax.sampling.random_trees import Shape
from cse_jax.screening import sizes
from cse_jax.screening.coarse import coarse_grid
from cse_jax.screening.funnel import screen
from cse_jax.screening.sizes import FINER, ROUGH
from cse_jax.screening.verification import LARGEST, MIN_RISE, VANISHED, Property, judge, verify
from cse_jax.search.branch import Branch, BranchConfig

ALL_SPACES = pytest.mark.parametrize("space", SPACES.values(), ids=str)


@pytest.fixture(scope="module")
def random_graphs():
    """A random graph and the formulas of its candidates, for each space."""
    found = {}
    with float64():
        for space in SPACES.values():
            grown = grow(jax.random.key(11), space, per_operator=1)
            tokens = tokens_of(grown, np.flatnonzero(grown.candidate), space)
            found[space.name] = grown, tokens, decode(tokens, space)
    return found


def mixed_population(space, count):
    """Random formulas and descendants of known losses, so that many converge and many don't."""
    parents = list(zoo.known(space).values())
    return parents + descendants(parents, count, seed=4)


@pytest.mark.slow
@ALL_SPACES
def test_grown_formulas_are_random_formulas_with_the_prediction(space, random_graphs):
    grown, tokens, expressions = random_graphs[space.name]
    assert len(expressions) > 0.7 * (len(grown.candidate) - len(space.leaves)) * 5 / 6
    assert all(e.variables & set(space.differentiable) for e in expressions)
    assert max(map(len, expressions)) <= 40 and {e.height for e in expressions} >= {2, 3, 4, 5, 6}
    assert {t for e in expressions for t in e.tokens} >= set(space.operators) | {"1", "2", "3"}
    by_hand = random_expressions(space, 3000)
    sizes = np.mean([len(e) for e in expressions]), np.mean([len(e) for e in by_hand])
    assert 0.7 < sizes[0] / sizes[1] < 1.1
    again = grow(jax.random.key(11), space, per_operator=1)
    np.testing.assert_array_equal(again.graph.left, grown.graph.left)
    other = grow(jax.random.key(12), space, per_operator=1)
    assert (np.asarray(other.graph.left) != np.asarray(grown.graph.left)).mean() > 0.3


@ALL_SPACES
def test_graphs_evaluate_what_formulas_do(space, random_graphs):
    """As grown, and rebuilt from tokens with equal parts shared: the same values as each formula alone."""
    grown, tokens, expressions = random_graphs[space.name]
    grid = trajectories(space)
    points = grid.inputs[:, ::5, ::6].reshape(len(space.variables), -1, *grid.inputs.shape[3:])
    chosen = np.random.default_rng(0).permutation(len(expressions))[:75]
    with float64():
        leaves = graphs.leaf_values(space, points)
        rows = np.flatnonzero(grown.candidate)[chosen]
        (as_grown,) = graphs.evaluate(space, grown.graph, rows, leaves)
        graph, roots, wide = graphs.from_tokens(tokens[chosen], space)
        (rebuilt,) = graphs.evaluate(space, graph, roots, leaves)
        np.testing.assert_array_equal(as_grown, rebuilt)
        np.testing.assert_array_equal(np.asarray(grown.wide)[rows], wide)
        inputs, nearby = (
            {v.name: jnp.asarray(points[k]) + off for k, v in enumerate(space.variables)} for off in (0.0, 1e-14)
        )
        checked = 0
        for k, row in zip(chosen, as_grown, strict=True):
            value, other = (
                np.broadcast_to(expressions[k].evaluate(i, stable=False), row.shape) for i in (inputs, nearby)
            )
            stable = np.isclose(value, other, rtol=1e-6, atol=1e-9)  # unlike the cosine of something over 0
            np.testing.assert_allclose(np.asarray(row)[stable], value[stable], rtol=1e-6, atol=1e-9)
            checked += stable.mean()
        assert checked > 0.7 * len(chosen)


def test_tokens_round_trip(random_graphs):
    for space in SPACES.values():
        _, tokens, expressions = random_graphs[space.name]
        again = encode(expressions, space)
        np.testing.assert_array_equal(again, tokens[:, : again.shape[1]])
    with pytest.raises(ValueError, match="lacks"):
        decode(np.array([[len(BOX.leaves), 0, PAD]]), BOX)  # a binary operator with one operand


@ALL_SPACES
def test_hashes_tell_formulas_apart_but_not_operand_order(space, random_graphs):
    def swapped(name, *operands):
        order = operands[::-1] if name in ("Add", "Mul", "Dot") else operands
        return (name, *sum(order, ()))

    _, tokens, expressions = random_graphs[space.name]
    mirrored = [Expression(e.fold(lambda t: (t,), swapped), space) for e in expressions]
    np.testing.assert_array_equal(hashes(tokens, space), hashes(encode(mirrored, space), space))


@pytest.mark.slow
@ALL_SPACES
def test_verdicts_agree_with_each_formula_alone(space):
    """A gate written down directly: one formula at a time, reverse mode, partial derivatives and all."""
    population = mixed_population(space, 40)
    verdicts = verify(population, space, sign_flip=True)
    plain = [_passes(expression) for expression in population]
    decided = [(str(e), v.passed, p) for e, v, p in zip(population, verdicts, plain, strict=True) if p is not None]
    assert not [text for text, ours, theirs in decided if ours != theirs]
    assert len(decided) > 0.9 * len(population) and 8 < sum(p for _, _, p in decided) < 40


def _passes(expression):
    """Whether a formula passes; None where the gradient meets 0 times infinity, which is 0 to the gate."""
    space, grid = expression.space, trajectories(expression.space)
    inputs = {v.name: grid.inputs[k] for k, v in enumerate(space.variables)}
    tangents = {v.name: grid.tangents[k] for k, v in enumerate(space.variables)}
    with float64():
        moving = {n: jnp.asarray(inputs[n]) for n in space.differentiable}
        values, pullback = jax.vjp(lambda m: expression.evaluate(inputs | m, stable=False), moving)
        (gradients,) = pullback(jnp.ones_like(values))
        values = np.asarray(values)
        gradients = {n: np.asarray(g) for n, g in gradients.items()}
    if np.isfinite(values).all() and any(np.isnan(g).any() for g in gradients.values()):
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        along = sum(gradients[n] * tangents[n] for n in space.differentiable)
    if space.class_axis:
        values, along = values.sum(-1), along.sum(-1)
    values = np.broadcast_to(values, grid.inputs.shape[1:3])
    if not (np.abs(values) < LARGEST).all() or not all((np.abs(g) < LARGEST).all() for g in gradients.values()):
        return False
    return any(_converges(sign * values, sign * along, grid) for sign in (1.0, -1.0))


def _converges(values, along, grid):
    steepest = np.abs(along).max(1, keepdims=True)
    magnitude = np.abs(values).max(1, keepdims=True)
    if steepest.max() == 0.0:
        return False
    for k in np.flatnonzero(grid.gated):
        noise = 1e-12 * magnitude[k]
        if (along[k] < -1e-6 * steepest[k] - noise).any():
            return False
        if (np.diff(values[k]) < -1e-6 * np.ptp(values[k]) - noise).any():
            return False
        if not values[k, -1] - values[k, 0] > MIN_RISE * magnitude[k]:
            return False
    return all(abs(along[k, 0]) <= VANISHED * steepest[k] for k in np.flatnonzero(grid.vanishing))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "units"),
    [(SPACES["multi_class"], "pixels"), (SPACES["binary_class"], "pixels"), (BOX, "pixels"), (BOX, "strides")],
    ids=str,
)
def test_coarse_to_fine_loses_nothing(space, units):
    """Verdicts of everyone on the full grid, against those of the few that the coarse grids let through."""
    with float64():
        grown, rough = jax.tree.map(lambda a: a[0], _grow_and_filter(space, units, 1, 256, 40, 5, [0]))
        rows = np.flatnonzero(grown.candidate)
        tokens = tokens_of(grown, rows, space)
        kept = np.asarray(rough)[rows].copy()
    kept[kept] = may_pass_finer_grid(tokens[kept], space, units)
    passed = judge(tokens, space, units=units).passed(sign_flip=True)
    assert len(tokens) > 15_000 and passed.sum() > 30 and not (passed & ~kept).any()
    assert kept.mean() < 0.1


@ALL_SPACES
def test_coarse_to_fine_keeps_descendants_of_known_losses(space):
    tokens = encode(mixed_population(space, 400), space)
    kept = may_pass_finer_grid(tokens, space, "strides")
    passed = judge(tokens, space, units="strides").passed(sign_flip=True)
    assert passed.sum() > 50 and not (passed & ~kept).any()


def test_coarse_grids_are_part_of_the_full_grid():
    for paths, points in (ROUGH, FINER):
        grid = coarse_grid(MULTI_CLASS, "pixels", paths, points)
        full = graphs.leaf_values(MULTI_CLASS, trajectories(MULTI_CLASS).inputs.reshape(3, -1, 3))
        assert grid.leaves.shape == (6, paths * points, 3) and grid.steps[0] == 0 and grid.steps[-1] == 12
        known = {column.tobytes() for column in np.moveaxis(full, 1, 0)}
        assert all(np.ascontiguousarray(column).tobytes() in known for column in np.moveaxis(grid.leaves, 1, 0))


def collect(space, count, **options):
    seen, found = set(), []
    for batch in screen_batches(space, range(count), per_operator=1, seen=seen, **options):
        seen.update(batch.hashes.tolist())
        found.append((batch.number, batch.candidates, batch.hashes.tolist()))
    return found, seen


def test_batches_come_in_order_whatever_the_workers(monkeypatch):
    found = []
    for workers in (1, 3):
        monkeypatch.setattr(sizes, "CPU", dataclasses.replace(sizes.CPU, workers=workers))
        found.append(collect(BOX, 5))
    (one, seen_one), (three, seen_three) = found
    assert seen_one == seen_three and len(seen_one) > 100
    assert [b[:2] for b in one] == [b[:2] for b in three] and [b[0] for b in one] == list(range(5))
    other, _ = collect(BOX, 1, seed=1)
    assert other[0][2] != one[0][2]


def test_a_screening_without_formulas_ends():
    with pytest.raises(InputError, match="no random formula of space box has as few as 1 nodes"):
        next(screen_batches(BOX, itertools.count(), per_operator=1, width=16, max_nodes=1))


@pytest.mark.slow
def test_batches_have_the_same_survivors_whatever_the_device(monkeypatch):
    """Sizes for GPUs, and a TPU that leaves the work to its host."""
    ((of_cpu, seen),) = [collect(BOX, 2)]
    gpu = dataclasses.replace(sizes.GPU, batch=1024, tile=64, gradient_batch=1024, gradient_tile=64)
    monkeypatch.setattr(sizes, "GPU", gpu)
    for platform in ("gpu", "tpu"):
        stream._on_all_devices.cache_clear()
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        found, seen_there = collect(BOX, 2)
        assert seen_there == seen and [batch[:2] for batch in found] == [batch[:2] for batch in of_cpu]


def test_a_tpu_judges_as_its_host_does_and_simulates_as_a_gpu_does(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert dataclasses.replace(sizes.sizes(), simulated=sizes.CPU.simulated) == sizes.CPU
    assert sizes.sizes().simulated == sizes.GPU.simulated


@pytest.mark.parametrize(("text", "metric"), [("i / u", "to 0"), ("2", "to nan")])
def test_gains_need_a_reference_that_gains(text, metric):
    """A share of a loss would be a gain, and that of 0 a division by it."""
    with pytest.raises(InputError, match=f"{text} takes the metric from 0.4.* {metric}.*; gains are shares"):
        screen(BOX, 100, reference=zoo.find(text, BOX))
    assert screen(BOX, 100, reference=zoo.find(text, BOX), skip=("simulation",)).generated == 100


def test_survivors_on_disk(tmp_path):
    survivors = Survivors(tmp_path, BOX, {"seed": 0, "space": "box"})
    for batch in screen_batches(BOX, range(3), per_operator=1):
        survivors.add(batch)
        survivors.flush()
    rows = read_survivors(tmp_path, BOX)
    assert len(rows) == survivors.behaviours == len({row["fingerprint"] for row in rows}) > 100
    assert [row["nodes"] for row in rows] == sorted(row["nodes"] for row in rows)
    for most in (1, 5, 60, len(rows), len(rows) + 1):
        assert read_survivors(tmp_path, BOX, most=most) == rows[:most]
    for row, verdict in zip(rows[:40], verify([zoo.find(r["authors"], BOX) for r in rows[:40]], BOX), strict=True):
        assert verdict.passed and verdict.fingerprint == row["fingerprint"], row
        assert row["formula"] == str(zoo.find(row["authors"], BOX)) and row["rise"] > MIN_RISE
    again = Survivors(tmp_path, BOX, {"seed": 0})
    assert (next(again.left()), again.candidates, again.seen) == (3, survivors.candidates, survivors.seen)
    with pytest.raises(SurvivorsError, match="screened with seed=0, not 1"):
        Survivors(tmp_path, BOX, {"seed": 1})
    (tmp_path / "settings.json").write_text('{"seed": 0, "space": "box"}')  # as the former version wrote it
    for refused in (lambda: read_survivors(tmp_path, BOX), lambda: Survivors(tmp_path, BOX, {"seed": 0})):
        with pytest.raises(SurvivorsError, match="written by another version of cse_jax"):
            refused()
    (tmp_path / "settings.json").write_text('{"format": 3, "seed": 0, "space": "box"}')
    next(tmp_path.glob("*.parquet")).write_bytes(b"broken")
    with pytest.raises(SurvivorsError, match="can't be read"):
        Survivors(tmp_path, BOX, {"seed": 0})
    with pytest.raises(SurvivorsError, match="holds no survivors"):
        read_survivors(tmp_path / "nowhere", BOX)
    with pytest.raises(SurvivorsError, match="holds losses of space box, not multi_class"):
        read_survivors(tmp_path, MULTI_CLASS)


def test_a_file_is_full_of_rows_or_of_hashes(tmp_path, monkeypatch):
    """Where most formulas behave as others do, few rows go with many hashes, and readers take 100 MB of metadata."""
    (batch,) = screen_batches(BOX, range(1), per_operator=1)
    survivors = Survivors(tmp_path, BOX, {})
    survivors.add(batch)
    assert 10 < len(batch.hashes) < 10_000 and not survivors.full
    monkeypatch.setattr("cse_jax.atlas.survivors._HASH_LIMIT", len(batch.hashes))
    assert survivors.full
    survivors.flush()
    assert not survivors.full


def test_a_file_that_is_lost_is_screened_again(tmp_path):
    """Also where several processes share the batches; the same behaviours, in the same number of formulas."""
    settings = {"processes": 2}
    whole = Survivors(tmp_path, BOX, settings, process=1)
    numbers = itertools.islice(whole.left(), 4)
    for batch in screen_batches(BOX, numbers, per_operator=1):
        whole.add(batch)
        if batch.number in (1, 5):
            whole.flush()
    whole.flush()
    files = sorted(tmp_path.glob("*.parquet"))
    assert len(files) == 3
    files[1].unlink()
    again = Survivors(tmp_path, BOX, settings, process=1)
    assert again.behaviours < whole.behaviours and again.candidates < whole.candidates
    numbers = list(itertools.islice(again.left(), 3))
    assert numbers == [3, 5, 9]
    for batch in screen_batches(BOX, iter(numbers[:2]), per_operator=1):
        again.add(batch)
    again.flush()
    for found in (again, Survivors(tmp_path, BOX, settings, process=1)):
        assert (found.behaviours, found.candidates, found.seen) == (whole.behaviours, whole.candidates, whole.seen)


@pytest.mark.slow
def test_no_flipped_bit_of_survivors_is_read(tmp_path):
    survivors = Survivors(tmp_path, BOX, {"space": "box"})
    for batch in screen_batches(BOX, range(1), per_operator=1):
        survivors.add(batch)
    survivors.flush()
    (path,) = tmp_path.glob("*.parquet")
    content, before, rng = path.read_bytes(), read_survivors(tmp_path, BOX), random.Random(0)
    ends = int.from_bytes(content[-8:-4], "little") + 8  # what describes the pages has no checksum
    for _ in range(60):
        place = rng.randrange(len(content) - ends)
        flipped = bytes([content[place] ^ (1 << rng.randrange(8))])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])
        with contextlib.suppress(SurvivorsError):
            assert read_survivors(tmp_path, BOX) == before, place


def test_a_search_begins_with_screened_losses(tmp_path):
    survivors = Survivors(tmp_path, BOX, {"space": "box"})
    for batch in screen_batches(BOX, range(1), per_operator=1):
        survivors.add(batch)
    survivors.flush()
    branch = Branch.__new__(Branch)
    branch.name, branch.space, branch.seed, branch.shape = "box", BOX, 0, Shape(max_nodes=12)
    branch.template = None
    branch.sizes, branch.entries = BranchConfig(population=60, screened=str(tmp_path)), []
    made = branch._population(0)
    population = made.tokens
    assert made.origin(0) == ["screened"] and made.origin(59)[0] in ("crossover", "mutation", "random")
    shortest = [row["authors"] for row in read_survivors(tmp_path, BOX) if row["nodes"] <= 12][:30]
    assert [to_authors(e) for e in decode(population[:30], BOX)] == shortest and len(population) == 60


SMALL = ("--space=box", "--per_operator=1")


def screened(*flags):
    """What a screening that ends well says."""
    code, output = run("screen", *SMALL, *flags)
    assert code == 0, output
    return output


def survivors_of(folder):
    return [(row["authors"], row["fingerprint"], row["batch"]) for row in read_survivors(folder, BOX)]


@pytest.mark.slow
def test_a_killed_screening_ends_the_same(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = ("--count=150000", "--flush_seconds=0.2")
    assert "behaviours" in screened(*flags, f"--out={whole}")
    process = start("screen", *SMALL, *flags, f"--out={killed}")
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not list(killed.glob("*.parquet")):
        time.sleep(0.02)
    process.kill()
    code, output = process.finish()
    assert code == -signal.SIGKILL and list(killed.glob("*.parquet")), output
    screened(*flags, f"--out={killed}")
    assert survivors_of(killed) == survivors_of(whole)
    code, output = run("screen", *SMALL, *flags, f"--out={killed}", "--seed=1")
    assert code == 1 and "screened with seed=0, not 1" in output


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds on one device in four batches."""
    folder = tmp_path_factory.mktemp("alone") / "found"
    screened("--batches=4", f"--out={folder}")
    return folder


@pytest.mark.slow
def test_three_devices_find_what_one_finds(alone, tmp_path, monkeypatch):
    """Also where the batches do not fill the devices."""
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=3")
    code, output = start("screen", *SMALL, "--batches=4", f"--out={tmp_path / 'three'}").finish()
    assert code == 0, output
    assert survivors_of(tmp_path / "three") == survivors_of(alone)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(alone, tmp_path):
    together = tmp_path / "together"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = ("--batches=4", f"--out={together}", f"--coordinator={address}", "--processes=2")
    processes = [start("screen", *SMALL, *flags, f"--process={k}") for k in range(2)]
    for code, output in (process.finish() for process in processes):
        assert code == 0, output
    assert survivors_of(together) == survivors_of(alone)


@pytest.mark.slow
def test_enumeration_writes_an_atlas(tmp_path):
    assert "12,738" in screened("--enumerate", "--max_nodes=4", f"--out={tmp_path}")  # formulas of 4 nodes
    rows = read_survivors(tmp_path, BOX)
    assert "-(i / u)" in {row["formula"] for row in rows} and max(row["nodes"] for row in rows) <= 5
    assert len(list(tmp_path.glob("*.parquet"))) == 4
    code, output = run("screen", *SMALL, f"--out={tmp_path}", "--batches=1")
    assert code == 1 and "was screened with" in output


def test_unknown_flags_and_spaces_are_refused():
    for flags, message in (
        (("--spaces=box",), "Unknown command line flag"),
        (("--space=boxes",), "no search space 'boxes'"),
        (("--units=metres",), "--units is 'metres'; space box has pixels, strides"),
        (("--processes=2",), "need --coordinator"),
        (("more",), "unknown argument 'more'"),
    ):
        code, output = run("screen", *SMALL, *flags)
        assert code != 0 and message in output, output


def test_a_space_with_a_unit_of_its_own_is_screened(tmp_path):
    (tmp_path / "own.py").write_text(
        "import dataclasses\nfrom cse_jax.language.spaces import BOX\n"
        "SPACE = dataclasses.replace(BOX, name='own', units=('cells',), paths=lambda units: BOX.paths('strides'))\n"
    )
    flags = (f"--space={tmp_path / 'own.py'}", f"--out={tmp_path / 'out'}", "--enumerate", "--max_nodes=2")
    code, output = run("screen", *flags)
    assert code == 0, output
    assert '"units": "cells"' in (tmp_path / "out" / "settings.json").read_text()


def test_margins_are_reported_for_the_sign_that_passes():
    loss = zoo.find("GIoU", BOX)
    judged = judge(encode([loss, Expression(("Neg", *loss.tokens), BOX)], BOX), BOX)
    assert judged.failed.tolist()[0][0] == judged.failed.tolist()[1][1] == Property.NONE
    np.testing.assert_allclose(judged.rise[0, 0], judged.rise[1, 1])
    assert dataclasses.is_dataclass(coarse_grid(BOX, "pixels", *ROUGH))
