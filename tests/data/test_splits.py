"""Parts of a fold share no patient, every patient is tested once, and a canary detects leaking slices."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from bench import registry
from bench.data.pack import Pack, load_or_pack
from bench.data.splits import institutions, patients, split_hash, split_table
from bench.errors import BadSetting, DataError, LeakageError
from bench.types import Fold
from tests.fakes import pack_of


def cohort(cases: int = 40, seed: int = 0, places: str = "ABC") -> pd.DataFrame:
    """An index like LGG's: 20 to 88 slices a patient, 10 to 60 % of them with tumour."""
    rng = np.random.default_rng(seed)
    tables = []
    for case in range(cases):
        count = int(rng.integers(20, 89))
        positive = np.arange(count) < rng.uniform(0.1, 0.6) * count
        facts = {"case": f"P{case:03}", "slice": range(1, count + 1), "institution": places[case % len(places)]}
        tables.append(pd.DataFrame(facts | {"positive": positive, "pixels": positive * 9}))
    return pd.concat(tables, ignore_index=True)


INDEX = cohort()


def few(cases: int, **facts: object) -> pd.DataFrame:
    made = {"slice": 1, "institution": "A", "positive": True, "pixels": 1} | facts
    return pd.DataFrame({"case": [f"P{c}" for c in range(cases)]}).assign(**made)


# A fold


@pytest.mark.parametrize("shared", [("train", "val"), ("train", "test"), ("val", "test")])
def test_a_patient_in_two_parts_is_refused_by_name(shared):
    parts = {"train": {"a"}, "val": {"b"}, "test": {"c"}}
    for part in shared:
        parts[part] |= {"TCGA_2", "TCGA_1"}
    with pytest.raises(LeakageError, match="fold 3 shares patients: TCGA_1, TCGA_2"):
        Fold(3, **{part: frozenset(names) for part, names in parts.items()})


def test_a_patient_has_one_part_or_none():
    fold = Fold(0, frozenset("ab"), frozenset("c"), frozenset("d"))
    assert [fold.part(case) for case in "abcde"] == ["train", "train", "val", "test", None]


@pytest.mark.parametrize("empty", ["train", "val", "test"])
def test_an_empty_part_raises_a_helpful_error(empty):
    parts = {"train": {"a"}, "val": {"b"}, "test": {"c"}} | {empty: set()}
    with pytest.raises(DataError, match=f"fold 0 has no {empty} patients. Use fewer folds or more patients"):
        Fold(0, **{part: frozenset(names) for part, names in parts.items()})


# Patients


@pytest.mark.parametrize(("folds", "validation"), [(2, 0.5), (5, 0.2), (12, 0.2)])
def test_every_patient_is_tested_once_and_parts_are_disjoint(folds, validation):
    index = cohort(12)
    made = patients(index, folds=folds, validation=validation)
    assert [f.number for f in made] == list(range(folds))
    everyone = set(index["case"])
    for fold in made:
        assert all(not a & b for a, b in combinations((fold.train, fold.val, fold.test), 2))
        assert fold.train | fold.val | fold.test == everyone
    assert sorted(case for fold in made for case in fold.test) == sorted(everyone)


def test_validation_has_its_share_of_the_patients_outside_the_test_set():
    for fold in patients(INDEX, folds=5, validation=0.25):
        assert len(fold.val) / len(fold.val | fold.train) == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("share", [0, 0.6, 1])
def test_a_validation_share_outside_its_range_is_refused(share):
    with pytest.raises(BadSetting, match=f"split 'patients': validation = {share} is refused"):
        registry.split["patients"].settings({"validation": share})


def spread(parts) -> float:
    """The standard deviation of the shares of slices with tumour."""
    return float(np.std([INDEX.loc[INDEX["case"].isin(part), "positive"].mean() for part in parts]))


def test_folds_are_better_balanced_than_chance():
    rng = np.random.default_rng(1)
    cases = INDEX["case"].unique()
    chance = np.median([spread(np.array_split(rng.permutation(cases), 5)) for _ in range(50)])
    balanced = [spread(f.test for f in patients(INDEX, seed=seed)) for seed in range(5)]
    assert max(balanced) < chance
    assert np.mean(balanced) < chance / 2


def test_the_split_depends_only_on_its_settings():
    first = split_hash(patients(INDEX))
    assert split_hash(patients(INDEX.copy())) == first
    assert split_hash(patients(INDEX.sample(frac=1, random_state=2).reset_index(drop=True))) == first
    hashes = {split_hash(patients(INDEX, **other)) for other in ({"seed": 1}, {"folds": 4}, {"validation": 0.3})}
    assert len(hashes | {first}) == 4


def test_the_hash_depends_on_the_part_of_each_patient():
    def fold(number=0, train="ab", val="c", test="d"):
        return Fold(number, frozenset(train), frozenset(val), frozenset(test))

    assert split_hash([fold()]) == split_hash([fold(train="ba")])
    others = [fold(number=1), fold(train="ac", val="b"), fold(val="d", test="c"), fold(train="abe")]
    assert len({split_hash([f]) for f in [fold(), *others]}) == 5
    assert len(split_hash([fold()])) == 12
    assert set(split_hash([fold()])) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("cases", "folds", "sentence"),
    [
        (4, 5, "4 patients cannot be split into 5 folds of .* patients. Set --folds to 4 or fewer"),
        (2, 2, "2 patients cannot be split into 2 folds .* At least three are needed"),
        (1, 2, "1 patient cannot be split into 2 folds"),
        (3, 2, "a fold has a single patient outside its test set.*Add patients"),
    ],
)
def test_too_few_patients_raise_a_helpful_error(cases, folds, sentence):
    with pytest.raises(DataError, match=sentence):
        patients(few(cases), folds=folds)


@pytest.mark.parametrize("positive", [True, False])
def test_a_dataset_of_one_stratum_is_split_without_a_warning(positive):
    made = patients(few(10, positive=positive), folds=5)
    assert sorted(case for fold in made for case in fold.test) == [f"P{c}" for c in range(10)]


def test_there_may_be_fewer_positive_slices_than_folds():
    index = few(10).assign(positive=[True] * 2 + [False] * 8)
    assert len(patients(index, folds=5)) == 5


def test_the_table_lists_the_part_of_each_patient():
    index = pd.concat([few(4), few(4).assign(slice=2, positive=False)], ignore_index=True)
    folds = patients(index, folds=2)
    table = split_table(index, folds)
    assert len(table) == 2 * 4
    assert set(table["slices"]) == {2}
    assert set(table["positive"]) == {1}
    for fold in folds:
        for part in ("train", "val", "test"):
            cases = table[(table["fold"] == fold.number) & (table["part"] == part)]["case"]
            assert set(cases) == getattr(fold, part)


# Institutions


def test_each_institution_is_the_test_set_once():
    folds = institutions(INDEX)
    for fold, name in zip(folds, "ABC", strict=True):
        inside = INDEX["institution"] == name
        assert fold.test == set(INDEX.loc[inside, "case"])
        assert fold.train | fold.val == set(INDEX.loc[~inside, "case"])


def test_institutions_that_leave_too_few_patients_are_refused():
    with pytest.raises(DataError, match=r"all patients come from one institution \(A\). Use --set split=patients"):
        institutions(few(6))
    with pytest.raises(DataError, match="without institution A, fewer than two patients are left"):
        institutions(few(6).assign(institution=list("AAAAAB")))


# The leak canary


def copied_dice(pack: Pack, part: np.ndarray) -> float:
    """Mean Dice per patient of copying, for each slice, the mask of the most similar slice of another fold.

    part: (N,), the fold that tests each slice. Nothing is learned, so a high score is leakage.
    """
    flair = pack.images[..., 1].reshape(len(part), -1).astype(np.float32)
    flair /= np.linalg.norm(flair, axis=1, keepdims=True).clip(1)
    alike = flair @ flair.T
    alike[part[:, None] == part] = -1
    copied = pack.masks[alike.argmax(1)].astype(bool)
    truth = pack.masks.astype(bool)
    scores = []
    for case in pack.cases:
        rows = pack.rows([case])
        scores.append(2 * (copied[rows] & truth[rows]).sum() / (copied[rows].sum() + truth[rows].sum()))
    return float(np.mean(scores))


def leaky_and_honest(pack: Pack) -> tuple[float, float]:
    """`copied_dice` over five random sets of slices, and over the test sets of five folds of patients."""
    random = np.random.default_rng(0).permutation(len(pack.index)) % 5
    ours = np.full(len(pack.index), -1)
    for fold in patients(pack.index, folds=5):
        ours[pack.rows(fold.test)] = fold.number
    return copied_dice(pack, random), copied_dice(pack, ours)


def test_copying_the_nearest_slice_scores_high_only_on_slice_level_folds():
    """Each patient has its own anatomy and lesion position, which drift slowly from slice to slice."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:24, :24]
    images, masks, cases = [], [], []
    for case in range(15):
        anatomy, drift = rng.uniform(0, 120, (24, 24)), rng.uniform(-0.4, 0.4, 2)
        for number in range(10):
            centre = np.array([4 + case % 4 * 5, 4 + case // 4 * 5]) + drift * number
            lesion = np.hypot(y - centre[0], x - centre[1]) < 3
            images.append(np.repeat((anatomy + rng.uniform(0, 20, (24, 24)) + 100 * lesion)[..., None], 3, -1))
            masks.append(lesion)
            cases.append(f"P{case:02}")
    leaky, honest = leaky_and_honest(pack_of(np.array(images, np.uint8), np.array(masks, np.uint8), cases))
    assert leaky > 0.7
    assert honest < 0.3


@pytest.fixture(scope="session")
def real(lgg_folder, tmp_path_factory) -> Pack:
    """The real slices at 32 x 32."""
    source = registry.dataset["lgg"].bind({"folder": lgg_folder, "resize": 32})()
    return load_or_pack(source, tmp_path_factory.mktemp("real"))


@pytest.mark.slow
def test_copying_the_nearest_real_slice_scores_high_only_on_slice_level_folds(real):
    leaky, honest = leaky_and_honest(real)
    assert leaky > 0.5
    assert honest < 0.25


@pytest.mark.slow
def test_real_folds_are_disjoint_complete_and_balanced(real):
    folds = patients(real.index, folds=5)
    assert sorted(case for f in folds for case in f.test) == sorted(real.cases)
    shares = [real.index["positive"].to_numpy()[real.rows(f.test)].mean() for f in folds]
    assert max(shares) - min(shares) < 0.05
