"""Settings: one door in, every fault a sentence, and a fingerprint of what decides a result."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import pytest
from pydantic import ValidationError

from bench import registry
from bench.config import Input, RunConfig, flatten
from bench.errors import BadSetting, DataError, UnknownName
from bench.files import read_json
from bench.overrides import configure, load_settings, override, parse_assignment, read_yaml
from bench.overrides import written as as_written

DEFAULT = RunConfig()


def given(*assignments: str) -> RunConfig:
    """The defaults with some `--set key=value`."""
    return override(DEFAULT, dict(parse_assignment(a) for a in assignments))


@pytest.fixture
def written(tmp_path):
    """Write a YAML file and load it."""

    def write(text: str | bytes):
        path = tmp_path / "settings.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_settings(path)

    return write


# One door


def test_nested_yaml_dotted_yaml_flags_and_assignments_mean_the_same(written):
    nested = "model: {name: unet, base: 64}\ntrain:\n  lr: 1e-4\n  schedule: {name: poly, power: 0.5}\n"
    dotted = "model: unet\nmodel.base: 64\ntrain.lr: 1e-4\ntrain.schedule: poly\ntrain.schedule.power: 0.5\n"
    flags = {"train.schedule.power": 0.5, "train.schedule.name": "poly", "train.lr": 1e-4, "model.base": 64}
    config = override(DEFAULT, flags)
    assert config.train.lr == 1e-4
    assert (config.model.name, config.model.params) == ("unet", {"base": 64})
    assert (config.train.schedule.name, config.train.schedule.params) == ("poly", {"power": 0.5})
    assert override(DEFAULT, written(nested)) == override(DEFAULT, written(dotted)) == config
    assert given("model={name: unet, base: 64}", "train={lr: 1e-4, schedule: {name: poly, power: .5}}") == config


def test_the_order_of_keys_does_not_matter():
    changes = {"model": "resunet", "model.base": 8, "augment": "warp", "augment.warp.flip": 0.25}
    made = {override(DEFAULT, dict(order)).model_dump_json() for order in permutations(changes.items())}
    assert len(made) == 1
    assert '"name":"resunet","base":8' in made.pop()


def test_a_later_layer_wins_and_drops_the_settings_of_what_it_replaces():
    file = {"model.name": "unet", "model.base": 64, "train.lr": 0.1, "augment.warp.flip": 0.25}
    assert override(DEFAULT, file, {"model": "resunet"}).model.model_dump() == {"name": "resunet"}
    assert override(DEFAULT, file, {"model.name": "resunet", "model.base": 8}).model.params == {"base": 8}
    assert override(DEFAULT, file, {"train.lr": 0.2}).train.lr == 0.2
    assert override(DEFAULT, file, {"augment": "none"}).augment == {}
    assert override(DEFAULT, {"augment": "none"}, {"augment.warp.flip": 0.25}).augment == {"warp": {"flip": 0.25}}


def test_choosing_the_same_component_keeps_its_settings_and_another_drops_them():
    deep = given("model.depth=3")
    assert override(deep, {"model": "unet", "model.base": 8}).model.params == {"depth": 3, "base": 8}
    assert override(deep, {"model": {"base": 8}}).model.params == {"depth": 3, "base": 8}
    assert override(deep, {"model": "resunet"}).model.params == {}
    assert override(given("train.schedule.floor=.1"), {"train.schedule": "poly"}).train.schedule.params == {}


def test_what_is_not_changed_stays():
    changed = override(given("seed=3", "train.lr=0.5"), {"train.epochs": 7})
    assert (changed.seed, changed.train.lr, changed.train.epochs) == (3, 0.5, 7)


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(ValidationError):
        DEFAULT.seed = 1
    with pytest.raises(ValidationError):
        DEFAULT.train.lr = 1
    override(DEFAULT, {"model.base": 1, "augment.warp.flip": 1})
    assert RunConfig() == DEFAULT


# What text means


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-2", -2), ("0", 0), ("+3", 3)),
        *(("true", True), ("False", False), ("null", None), ("none", None), ("~", None), ("", None)),
        *(("007", "007"), ("2024_1", "2024_1"), ("2024-01-31", "2024-01-31"), ("12:30", "12:30"), ("off", "off")),
        *(
            ("cuda:1", "cuda:1"),
            ("/data/2024", "/data/2024"),
            ("'12'", "12"),
            ("e5", "e5"),
            (".", "."),
            ("", None),
        ),
        *(("[a, 1e-3]", ["a", 1e-3]), ("a=b", "a=b")),
    ],
)
def test_text_is_read_as_what_it_looks_like(text, value, written):
    key, read = parse_assignment(f"some.key={text}")
    assert (key, read, type(read)) == ("some.key", value, type(value))
    assert written(f"some.key: {text}") == {"some.key": value}


@pytest.mark.parametrize("name", ["007", "12", "2024_1", "2024-01-31", "off", "1.0", "cuda:1"])
def test_a_run_may_have_any_name(name, written):
    assert given(f"name={name}").name == name
    assert override(DEFAULT, written(f"name: {name}")).name == name
    assert override(DEFAULT, written(f"name: '{name}'")).name == name
    assert given(f"name={name}").flat()["run.name"] == name


def test_none_switches_an_optional_setting_off():
    assert given("train.clip=none").train.clip is None


# Augmentation


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ([], {"warp": {}, "intensity": {}}),
        (["augment=none"], {}),
        (["augment=warp"], {"warp": {}}),
        (["augment=[warp]"], {"warp": {}}),
        (["augment.warp=none"], {"intensity": {}}),
        (["augment.warp=false"], {"intensity": {}}),
        (["augment=none", "augment.warp=true"], {"warp": {}}),
        (["augment=none", "augment.warp=true", "augment.warp.flip=0.1"], {"warp": {"flip": 0.1}}),
        (["augment={warp: {flip: 0.1}}"], {"warp": {"flip": 0.1}, "intensity": {}}),
    ],
)
def test_augmentations_are_chosen_added_to_and_removed(assignments, expected):
    assert given(*assignments).augment == expected


def test_a_configuration_may_be_made_with_the_name_of_an_augmentation():
    assert RunConfig(augment="none").augment == RunConfig(augment=None).augment == {}
    assert RunConfig(augment="warp").augment == RunConfig(augment=["warp"]).augment == {"warp": {}}


# Preprocessing


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ([], []),
        (["input.preprocess=none"], []),
        (["input.preprocess=median"], [("median", {})]),
        (["input.preprocess=[median, clahe]"], [("median", {}), ("clahe", {})]),
        (["input.preprocess={median: {size: 5}, clahe: {}}"], [("median", {"size": 5}), ("clahe", {})]),
        (["input={preprocess: {median: {}, clahe: {clip: 2}}}"], [("median", {}), ("clahe", {"clip": 2})]),
        (["input.preprocess.clahe.clip=2"], [("clahe", {"clip": 2})]),
        (
            ["input.preprocess.median.size=5", "input.preprocess.clahe=true"],
            [("median", {"size": 5}), ("clahe", {})],
        ),
        (
            ["input.preprocess.clahe.clip=2", "input.preprocess=[sharpen, clahe]"],
            [("sharpen", {}), ("clahe", {"clip": 2})],
        ),
    ],
)
def test_preprocessing_is_spelt_as_augmentation_is_and_keeps_its_order(assignments, expected, written):
    assert list(given(*assignments).input.preprocess.items()) == expected
    lines = "".join(f"{key}: {value}\n" for key, _, value in (a.partition("=") for a in assignments))
    assert list(override(DEFAULT, written(lines or "seed: 0")).input.preprocess.items()) == expected


def test_a_later_layer_adds_to_preprocessing_replaces_it_or_takes_steps_out():
    file = {"input.preprocess": {"median": {}, "clahe": {"clip": 2}}}

    def then(**layer):
        return list(override(DEFAULT, file, {"input": {"preprocess": layer}}).input.preprocess.items())

    assert then(clahe={"tiles": 4}) == [("median", {}), ("clahe", {"clip": 2, "tiles": 4})]
    assert then(bilateral={}) == [("median", {}), ("clahe", {"clip": 2}), ("bilateral", {})]
    assert then(median=None) == [("clahe", {"clip": 2})]
    swapped = override(DEFAULT, file, {"input.preprocess": ["clahe", "median"]})
    assert list(swapped.input.preprocess.items()) == [("clahe", {}), ("median", {})]


def test_a_configuration_may_be_made_with_the_name_of_a_preprocessing():
    assert Input(preprocess="none").preprocess == Input(preprocess=None).preprocess == {}
    assert Input(preprocess="clahe").preprocess == Input(preprocess=["clahe"]).preprocess == {"clahe": {}}


def test_the_order_of_steps_is_another_experiment_and_survives_being_logged():
    one, other = (given(f"input.preprocess={steps}") for steps in ("[median, clahe]", "[clahe, median]"))
    assert one.fingerprint() != other.fingerprint()
    for config in (one, other):
        full = config.completed()
        flat = full.flat()
        assert flat["input.preprocess"] == list(config.input.preprocess)
        assert (flat["input.preprocess.median.size"], flat["input.preprocess.clahe.clip"]) == (3, 3.0)
        back = override(DEFAULT, {k: v for k, v in flat.items() if not k.startswith("run.")})
        assert list(back.input.preprocess.items()) == list(full.input.preprocess.items())


def test_defaults_of_preprocessing_are_written_out_and_mistakes_named():
    assert given("input.preprocess=median").completed().input.preprocess == {"median": {"size": 3}}
    with pytest.raises(UnknownName, match=r"no preprocessing named 'clahee'\. Did you mean 'clahe'"):
        given("input.preprocess=clahee").completed()
    with pytest.raises(BadSetting, match="preprocessing 'clahe' has no setting 'limit'; it has clip, tiles"):
        given("input.preprocess.clahe.limit=2").completed()


# Patches


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ([], None),
        (["input.patch={}"], (128, 0.5, 0.5)),
        (["input={patch: {}}"], (128, 0.5, 0.5)),
        (["input.patch.size=64"], (64, 0.5, 0.5)),
        (["input.patch={size: 64}"], (64, 0.5, 0.5)),
        (["input={patch: {overlap: 0.25}}"], (128, 0.25, 0.5)),
        (["input.patch.tumour_share=1", "input.patch.size=32"], (32, 0.5, 1)),
        (["input.patch=none"], None),
    ],
)
def test_patches_are_off_until_any_of_their_settings_is_given(assignments, expected, written):
    patch = given(*assignments).input.patch
    assert (patch and (patch.size, patch.overlap, patch.tumour_share)) == expected
    lines = "".join(f"{key}: {value}\n" for key, _, value in (a.partition("=") for a in assignments))
    assert override(DEFAULT, written(lines or "seed: 0")).input.patch == patch


def test_a_later_layer_changes_patches_or_turns_them_off_and_on_again():
    file = {"input.patch.size": 64, "input.patch.overlap": 0.25}
    changed = override(DEFAULT, file, {"input.patch.size": 96}).input.patch
    assert (changed.size, changed.overlap) == (96, 0.25)
    off = override(DEFAULT, file, {"input.patch": None})
    assert off == DEFAULT
    again = override(off, {"input.patch.size": 96}).input.patch
    assert (again.size, again.overlap) == (96, 0.5)
    assert override(DEFAULT, file, {"input.image_size": 48}).input.patch.size == 64


def test_patches_are_logged_setting_by_setting_and_make_another_experiment():
    patched = given("input.patch.size=64")
    flat = patched.flat()
    assert [flat[f"input.patch.{key}"] for key in ("size", "overlap", "tumour_share")] == [64, 0.5, 0.5]
    assert "input.patch" not in flat
    assert override(DEFAULT, {k: v for k, v in flat.items() if not k.startswith("run.")}) == patched
    assert DEFAULT.flat()["input.patch"] is None
    others = map(given, ("input.patch.size=65", "input.patch={size: 64, overlap: 0.4}", "input.patch=none"))
    assert len({config.fingerprint() for config in (patched, *others)}) == 4
    assert patched.completed().fingerprint() == patched.fingerprint()


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("input.patch.sizes=64", "no setting 'input.patch.sizes'. Did you mean 'input.patch.size'?"),
        ("input.patch={sizes: 64}", "no setting 'input.patch.sizes'. Did you mean 'input.patch.size'?"),
        ("input.pach.size=64", "no setting 'input.pach.size'. Did you mean 'input.patch.size'?"),
        ("input.patch.size.side=64", "no setting 'input.patch.size.side'"),
        ("input.patch=64", "input.patch = 64 is refused"),
        ("input.patch.size=16", "input.patch.size = 16 is refused: input should be greater than or equal to 32"),
        ("input.patch.overlap=0.95", "input.patch.overlap = 0.95 is refused: input should be less than 0.95"),
        ("input.patch.tumour_share=2", "input.patch.tumour_share = 2 is refused"),
    ],
)
def test_a_fault_in_the_settings_of_patches_gets_a_sentence(assignment, sentence):
    with pytest.raises(BadSetting) as refused:
        given(assignment)
    assert sentence in str(refused.value)


# Faults


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("sede=1", "no setting 'sede'. Did you mean 'seed'. `bench list settings` shows all"),
        ("train.epoch=1", "no setting 'train.epoch'. Did you mean 'train.epochs'?"),
        ("trian.epochs=1", "no setting 'trian.epochs'. Did you mean 'train.epochs'?"),
        ("name.x=1", "'name' is a single value and has no 'name.x'"),
        ("input.channels={a: b}", "'input.channels' is a single value"),
        ("model=", "model.name = None is refused"),
        ("train=5", "train = 5 is refused"),
        ("augment=5", "augment = 5 is refused"),
        ("augment.warp=5", "augment.warp = 5 is refused"),
        ("input.preprocess=5", "input.preprocess = 5 is refused"),
        ("input.preprocess.clahe=5", "input.preprocess.clahe = 5 is refused"),
        ("input.prepocess.clahe=true", "no setting 'input.prepocess.clahe'. Did you mean 'input.preprocess'?"),
        ("augment.name=warp", "augment.name = 'warp' is refused"),
        ("train.lr=0", "train.lr = 0 is refused: .* Allowed: float, >= 1e-10, <= 1000"),
        ("train.lr=fast", "train.lr = 'fast' is refused"),
        ("train.lr=inf", "train.lr = 'inf' is refused"),
        ("train.lr=nan", "train.lr = 'nan' is refused"),
        ("train.epochs=1.5", "train.epochs = 1.5 is refused"),
        ("train.momentum=1", "train.momentum = 1 is refused: input should be less than 1"),
        ("input.image_size=8", "input.image_size = 8 is refused"),
        ("input.normalise=robust", "input.normalise = 'robust' is refused: .*'patient', 'image' or 'imagenet'"),
        (
            "evaluate.threshold=1",
            "evaluate.threshold = 1.* is refused: a threshold lies between 1e-6 and 1, or is 'val",
        ),
        ("evaluate.threshold=test", "evaluate.threshold = 'test' is refused"),
        ("seed=-1", r"seed = -1 is refused: .* Allowed: int, >= 0, < 4294967296\.$"),
        ("input.image_size=true", r"image_size = True is refused: true is no number. Allowed: int \| None, >= 16"),
        ("threads=2147483648", r"threads = 2147483648 is refused: .* Allowed: int \| None, >= 1, <= 1024"),
        ("train.clip=1e308", r"train.clip = 1e\+308 is refused: .* <= 1000000"),
        ("train.epochs=99999999999999999999", "train.epochs = 9{20} is refused: .* Allowed: int, >= 1, <= 100000"),
        ("input.channels=[]", r"input.channels.* = \[\] is refused"),
        ('name="a\\nb"', r"name = 'a\\nb' is refused: text must be one printable line"),
        ('device="\\e[31m"', "device = .* is refused: text must be one printable line"),
        (f"name={'a' * 201}", r"name = 'a{96}\.\.\. is refused: .*at most 200 characters"),
        ("seed=" + "9" * 5000, "the value of 'seed=9*...' is not YAML"),
        ("seed=!!bool maybe", "is not YAML"),
        ("seed=" + "[" * 3000 + "]" * 3000, r"is not YAML\. Put it in quotes\. it is over 50 levels deep"),
        ("name=[", r"the value of 'name=\[' is not YAML. Put it in quotes"),
        ("train.lr", "'train.lr' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(assignment, sentence):
    with pytest.raises(BadSetting, match=sentence):
        given(assignment)


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "just words", "model: [", "a: b: c", b"\xff\xfe\x00"])
def test_a_file_that_holds_no_settings_is_refused_with_a_sentence(text, written):
    with pytest.raises(DataError, match=r"^the settings file .*settings\.yaml "):
        written(text)


def test_a_missing_file_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(DataError, match=r"absent\.yaml cannot be read"):
        load_settings(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        (
            "base: {}\nentries: {a: {}}",
            "settings",
            r"a benchmark file, not a settings file.*`bench suite FILE`\.$",
        ),
        ("base: {}", "settings", r"is a search file, not a settings file: it is for `bench search FILE`\.$"),
        ("train: {lr: 1}", "benchmark", r"a settings file.*`bench run --config FILE`\. It has no 'entries'\.$"),
        ("base: {}\nspace: {}", "benchmark", "is a search file, not a benchmark file: .*no 'entries'"),
        ("entries: {}", "search", "is a benchmark file, not a search file: .*no 'space'"),
    ],
)
def test_a_file_for_another_command_is_sent_there(text, kind, sentence, tmp_path):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_yaml(tmp_path / "file.yaml", kind)


@pytest.mark.parametrize("text", ["model: unet\nmodel: resunet", "train: {lr: 1, lr: 2}"])
def test_a_key_that_is_there_twice_is_refused(text, tmp_path):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(DataError, match=r"is not YAML: '(model|lr)' is there twice"):
        read_yaml(tmp_path / "file.yaml")


BOMB = "".join(f"a{level}: &a{level} {{b: *a{level - 1}, c: *a{level - 1}}}\n" for level in range(1, 30))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a0: &a0 {x: 1, y: 1}\n" + BOMB, "aliases repeat values"),
        ("model: &m\n  name: unet\n  base: *m\n", "repeat values without end"),
        ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "over 50 levels deep"),
        ("seed: " + "9" * 5000, "digits"),
        ("seed: !!int ''", "is not YAML"),
    ],
)
def test_a_file_that_would_never_end_is_refused_with_a_sentence(text, reason, written):
    with pytest.raises(DataError, match=reason):
        written(text)


def test_aliases_of_a_sensible_size_are_followed(written):
    text = "loss: &l {name: dice, smooth: 2}\nboth: [*l, &s {name: poly}, *s]\nmore: {<<: *s}\n"
    assert written(text)["both"] == [{"name": "dice", "smooth": 2}, {"name": "poly"}, {"name": "poly"}]
    assert written(text)["more.name"] == "poly"


def test_only_a_regular_file_of_a_sensible_size_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(100 << 20)
    for path, reason in (
        (tmp_path / "pipe.yaml", "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / "large.yaml", "has 104857600 bytes, and at most"),
        (tmp_path / "gone.yaml", r"cannot be read \(No such file"),
    ):
        with pytest.raises(DataError, match=f"the settings file {path} {reason}.* Give the path of a YAML file"):
            read_yaml(path)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"deep\.json is not JSON: it is nested too deeply\. Fix it"):
        read_json(tmp_path / "deep.json", "the file", "Fix it.")


# Completed, flat, fingerprint


def test_completing_writes_every_default_out_and_is_idempotent():
    full = DEFAULT.completed()
    for kind, component in (("model", full.model), ("loss", full.loss), ("split", full.split)):
        assert component.params == registry.REGISTRIES[registry.__dict__[kind].plural][component.name].settings({})
    assert full.augment["warp"] == registry.augmentation["warp"].settings({})
    assert full.train.schedule.params == {"floor": 0.0}
    assert full.completed() == full


def test_completing_names_what_is_not_there():
    with pytest.raises(UnknownName, match="no model named 'unnet'"):
        given("model=unnet").completed()
    with pytest.raises(BadSetting, match=r"model 'unet' has no setting 'bas'; .*Did you mean 'base'?"):
        given("model.bas=3").completed()


def test_flat_is_dotted_plain_and_leads_back():
    config = given("name=x", "model.base=8", "train.schedule=poly", "plugins=[a.py]", "augment.warp.flip=0.1")
    flat = config.flat()
    assert flat["model.name"] == "unet"
    assert flat["model.base"] == 8
    assert flat["train.schedule.name"] == "poly"
    assert flat["augment.warp.flip"] == 0.1
    assert flat["augment.intensity"] is True
    own = {k.removeprefix("run."): v for k, v in flat.items() if k.startswith("run.")}
    where = {"device": "auto", "threads": None, "execution": "auto", "folds_at_once": 1}
    where |= {"checkpoint_every": 30, "searched": 0}
    assert own == {"name": "x", "seed": 0, "plugins": ["a.py"], **where}
    assert override(DEFAULT, {k: v for k, v in flat.items() if not k.startswith("run.")} | own) == config


def test_the_title_is_the_name_or_tells_the_choices():
    assert DEFAULT.title == "unet-bce_dice"
    assert given("model.encoder=resnet18").title == "unet-resnet18-bce_dice"
    assert given("name=mine").title == "mine"


def test_defaults_written_out_have_the_fingerprint_of_defaults_left_out():
    assert DEFAULT.completed().fingerprint() == DEFAULT.fingerprint()
    assert given("model.base=32", "train.schedule.floor=0").fingerprint() == DEFAULT.fingerprint()


def test_settings_that_came_later_leave_the_fingerprint_of_older_runs_as_it_was():
    """Computed at commit 469a69f, before there was any preprocessing."""
    assert DEFAULT.fingerprint() == "af335290c99ddc60"
    assert given("model=resunet", "augment=none", "input.image_size=64").fingerprint() == "f3bb443760cd136f"


@pytest.mark.parametrize(
    "same", ["name=other", "device=cpu", "threads=1", "execution=graph", "folds_at_once=2", "plugins=[a.py]"]
)
def test_the_fingerprint_leaves_out_what_decides_nothing(same):
    assert given(same).fingerprint() == DEFAULT.fingerprint()


def test_the_fingerprint_leaves_out_where_the_data_lies():
    here, there = (given("dataset=lgg", f"dataset.folder=/{place}") for place in ("here", "there"))
    assert here.fingerprint() == there.fingerprint()
    assert here.fingerprint() != override(here, {"dataset.resize": 128}).fingerprint()


def test_everything_else_changes_the_fingerprint():
    others = [
        *("dataset.patients=7", "input.image_size=64", "input.channels=flair", "input.normalise=image"),
        *("input.preprocess=median", "input.preprocess.median.size=5", "input.preprocess=clahe"),
        *("split.folds=3", "split.seed=1", "split=institutions", "model=resunet", "model.base=8", "loss=dice"),
        *("loss.bce_weight=0.1", "augment=none", "augment.warp.flip=0.1", "train.schedule=constant", "seed=1"),
        *("train.epochs=1", "train.batch_size=1", "train.optimizer=sgd", "train.lr=0.1", "train.weight_decay=0"),
        *("train.momentum=0.1", "train.schedule.floor=0.1", "train.warmup_epochs=1", "train.clip=none"),
        *("train.freeze_epochs=1", "train.freeze_lr=0.1", "train.positive_fraction=0.5", "train.patience=3"),
        *("train.precision=float32", "train.deterministic=true", "evaluate.primary=iou"),
        *("evaluate.metrics=[dice]", "evaluate.threshold=0.4", "evaluate.batch_size=1"),
    ]
    prints = {given(a).fingerprint() for a in others}
    assert len(prints) == len(others)
    assert DEFAULT.fingerprint() not in prints


@pytest.mark.parametrize(
    "assignments",
    [
        (),
        ("model=resunet", "input.preprocess=[n4, clahe]", "input.patch={size: 64}", "augment=none"),
        ("name='007'", "input.channels=[flair, 'a: b']", "plugins=['a, b.py']", "train.clip=none"),
        ("dataset=pairs", "dataset.folder=x", "dataset.structures={liver: 1, kidneys: [2, 3]}"),
    ],
)
def test_settings_that_are_written_can_be_set_again(assignments):
    config = given(*assignments).completed()
    settings = [f"{key}={as_written(value)}" for key, value in flatten(config.model_dump(mode="json"))]
    assert given(*settings).completed() == config


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        (["images", "masks"], "pairs"),
        (["imagesTr", "labelsTr", "imagesTs"], "volumes"),
        (["images"], "lgg"),
        (["TCGA_CS_4941_19960909"], "lgg"),
    ],
)
def test_the_data_set_of_a_folder_is_recognised_by_its_subfolders(folders, name, tmp_path):
    for folder in folders:
        (tmp_path / folder).mkdir()
    assert configure({"dataset.folder": str(tmp_path)}).dataset.name == name
    assert configure({"dataset.folder": str(tmp_path), "dataset": "lgg"}).dataset.name == "lgg"
    assert configure({"dataset": {"name": "lgg", "folder": str(tmp_path)}}).dataset.name == "lgg"
