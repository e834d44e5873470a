"""How scripts end on wrong flags, configs and paths: with a sentence, exit code 1, and nothing left behind."""

import os
import re
import signal
import time

import pytest
from absl import flags
from scripts import ROOT, own_flags, run, start

NAMES = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if "script.run(main)" in path.read_text())
HAVE_CONFIGS = ["compare", "data", "evaluate", "loss_table", "predict", "search", "train"]
DEAR = {"grain", "matplotlib", "orbax", "pandas", "pyarrow", "ray", "scipy", "sklearn", "tensorflow", "torch"}
WRONG = ["", "x", "maybe", "1.5", "-1", "-1.5", "nan", "inf", "-inf", "1e30", "9" * 30]


def refused(name, *arguments, said):
    """The whole of what a script says."""
    code, output = run(name, *arguments)
    assert code == 1 and re.search(said, output.strip().replace("\n", " ")), output
    assert "Traceback" not in output and "error in the program" not in output, output
    assert len(output.strip().splitlines()) <= 2, output


def test_all_scripts_are_here():
    assert len(NAMES) == 14 and set(HAVE_CONFIGS) < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_hears_ctrl_c_before_it_imports_anything_slow(name):
    code = (ROOT / "launch" / f"{name}.py").read_text()
    assert re.search(r"^(import|from) .*", code, re.M)[0] == "import script"
    assert code.endswith('if __name__ == "__main__":\n    script.run(main)\n')


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_states_what_it_may_be(name):
    with own_flags(name) as own:
        assert own
        for flag in own:
            parser = flag.parser
            number = isinstance(parser, flags.IntegerParser | flags.FloatParser)
            if number:
                assert None not in (parser.lower_bound, parser.upper_bound), f"--{flag.name} states no range"
            for wrong in WRONG if number or not isinstance(flag.value, str | list | None) else []:
                try:
                    flag.parse(wrong)
                except flags.IllegalFlagValueError as error:
                    assert f"--{flag.name}={wrong}" in str(error)
                    continue
                assert wrong == "nan" or parser.lower_bound <= flag.value <= parser.upper_bound, (flag.name, wrong)


@pytest.mark.parametrize("name", HAVE_CONFIGS)
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config=missing.py", "--config=missing.py: there is no such file$"),
        ("--config=configs/search", "--config=configs/search: it is a folder; name one of its files"),
        ("--config=configs/search/defalt.py", "no such file; did you mean 'configs/search/default.py'"),
        ("--config=", "there is no such file"),
        ("--config=README.md", r"README.md: the file can't be read, SyntaxError: .* \(README.md, line"),
        ("--config=launch/script.py", "AttributeError: module .* has no attribute 'get_config'"),
        ("--config=tests/test_named_losses.py", "the file can't be read|has no attribute 'get_config'"),
        ("--config=configs/data/coco.py:x", "the file can't be read, .*TypeError: get_config"),
        ("--config=configs/train/overfit.py:yolo", "'yolo' is no detector; use fcos, atss"),
        ("--config.nam=x", "config has no field 'nam'"),
        ("--config.=x", "config has no field ''; its fields are "),
        ("--config.a.b[0]=x", "config has no field 'a'"),
        ("--noconfig.nonsense", "config has no field 'nonsense'"),
    ],
)
def test_a_wrong_config_is_named(name, argument, said):
    refused(name, argument, said=said)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("train", ["--config=configs/search/default.py"], "it makes a SearchRun; this script takes a TrainRun$"),
        ("search", ["--config=configs/train/fcos_digits.py"], "it makes a TrainRun; this script takes a SearchRun$"),
        ("evaluate", ["--config=configs/data/coco.py"], "takes a TrainRun or PretrainedFasterRCNN"),
        ("confirm", ["--config=configs/data/coco.py"], "it makes a CocoData; this script takes a SearchRun$"),
        ("confirm", ["--config.search.seed=1"], "Unknown command line flag 'config.search.seed'"),
        ("search", ["--config.search.wrkers=2"], "config.search has no field 'wrkers'; did you mean 'workers'?"),
        ("search", ["--config.search=2"], "config.search has fields of its own, set one of them: seed, workers"),
        ("search", ["--config.search.seed.x=2"], "config.search.seed has no field 'x'; it has no fields"),
        ("search", ["--config.search.seed"], "Missing value for flag --config.search.seed"),
        ("search", ["--config.search.seed=x"], "flag --config.search.seed=x: invalid literal"),
        ("search", ["--config.search.seed=12345678901"], "config.search.seed is 12345678901; it must be a whole"),
        ("search", ["--config.search.seed=-1"], "config.search.seed is -1; it must be a whole number from 0 to"),
        ("search", ["--config.search.filters.scale=loud"], "config.search.filters.scale is 'loud'; it must be 'pred"),
        ("search", ["--config.schedule.probe=()"], r"config.schedule.probe is \(\); it must be a tuple, each a"),
        ("search", ["--config.schedule.proxy=(0,)"], r"config.schedule.proxy is \(0,\); it must be"),
        ("search", ["--config.schedule.proxy=(2,"], "Error while parsing string"),
        ("search", ["--config.search.final.fit_weights=nan"], r"final.fit_weights is \('nan',\); it must be"),
        ("search", ["--config.search.seed=1", "--config=configs/search/atss.py"], "before a value for --config was"),
        ("train", ["--config.epochs=inf"], "config.epochs is inf; it must be a number from 0 to 100,000"),
        ("train", ["--config.train.batch_size=0"], "config.train.batch_size is 0; it must be a whole number from 1"),
        ("train", ["--config.data.std=(1,)"], r"config.data.std is \(1,\); it must be a tuple of 3 items, each a"),
        ("train", ["--config.loss.box_weight=-1"], "config.loss.box_weight is -1.0; it must be a number from 0"),
        ("train", ["--config.data.cache=maybe"], "--config.data.cache=maybe: .*Non-boolean argument"),
        ("train", ["--config.steps=0", "--config.epochs=0"], "config: steps=0 and epochs=0 make a training without"),
        ("predict", ["x.png", "--score=nan"], "--score is nan; it must be a finite number"),
        ("predict", [], "name the images, or folders of them"),
        ("predict", ["/proc/nowhere.png", "--weights=x"], "/proc/nowhere.png"),
        ("evaluate", ["--weights=x", "--checkpoint=last"], "give either --weights or --checkpoint"),
        ("evaluate", ["--weights=/proc/nowhere.pth"], "/proc/nowhere.pth"),
        ("evaluate", ["--workdir=/proc/nowhere"], "/proc/nowhere"),
        ("evaluate", ["--results_file=x"], "--results_file needs --annotations"),
        ("evaluate", ["--results_file=/proc/nowhere", "--annotations=/proc/nowhere"], "/proc/nowhere"),
        ("data", ["--config.root=/proc/nowhere"], "The folder /proc/nowhere does not exist"),
        ("data", [], "No folder of COCO is given: set --config.root"),
        ("loss_table", ["--report=/proc/nowhere"], "/proc/nowhere"),
        ("loss_table", ["--config.parts=('mask',)"], r"config.parts is \('mask',\); it must be a tuple, each 'cls' or"),
        ("screen", ["--space=nonsense"], "nonsense"),
        ("screen", ["--space=/proc/nowhere.py"], "/proc/nowhere.py"),
        ("screen", ["--coordinator=nonsense"], "several processes need --coordinator"),
        (
            "screen",
            ["--coordinator=nonsense", "--processes=2"],
            "--coordinator=nonsense is no address; write",
        ),
        ("screen", ["--out=/proc/nowhere", "--count=1"], "/proc/nowhere"),
        ("export", ["--formula=x", "--space=/proc/nowhere.py"], "/proc/nowhere.py"),
        ("benchmark", [], "--suite"),
        ("benchmark", ["--suite=losses", "--json=/proc/nowhere/x.json"], "/proc/nowhere/x.json is in no folder"),
        ("benchmark", ["--suite=strategies", "--table=/proc/nowhere"], "/proc/nowhere"),
        ("benchmark", ["--suite=analysis", "--topology=nowhere"], "--topology=nowhere: .*pip install libtpu"),
    ],
    ids=str,
)
def test_wrong_input_is_named(name, arguments, said):
    refused(name, *arguments, said=said)


@pytest.mark.parametrize("name", ["search", "train"])
def test_a_wrong_folder_of_data_leaves_no_work_folder(name, tmp_path):
    config = f"--config=configs/{name}/fcos_bccd.py"
    code, output = run(name, config, "--config.data.root=/proc/nowhere", f"--workdir={tmp_path / 'run'}")
    assert code == 1 and "The folder /proc/nowhere does not exist" in output, output
    assert "kept" not in output and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "delay"), [(signal.SIGINT, 0.3), (signal.SIGTERM, 1.0)])
def test_an_interruption_of_the_imports_is_no_traceback(number, delay):
    process = start("search", "--config=missing.py")
    time.sleep(delay)
    os.killpg(process.pid, number)
    code, output = process.finish(timeout=20)
    assert (code, output) == (130, "\nInterrupted.\n")


def test_help_lists_the_flags_that_scripts_share_and_imports_little(monkeypatch):
    """It is there within 2 s of CPU: JAX itself is half of it, and nothing comes near it."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    code, output = start("search", "--help").finish()
    assert code == 1 and "--coordinator" in output and "--retry_failed" in output  # absl's code
    imported = set(re.findall(r"^import time:.*\| +([a-z_]+)$", output, re.MULTILINE))
    assert {"jax", "absl"} <= imported and imported.isdisjoint(DEAR), imported & DEAR
