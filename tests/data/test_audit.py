"""The audit finds every problem in one pass and names the files and patients."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from bench.data.audit import Audit, audit, audit_source
from bench.data.audit_layout import Finding
from bench.data.datasets.phantom import write_phantom
from bench.data.source import SliceFile, Source
from bench.errors import DataError
from bench.structures import Structures
from tests import fakes as tiffs
from tests.fakes import write_case

A, B = "TCGA_CS_4941_19960909", "TCGA_CS_4942_19970222"


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two complete patients of one institution."""
    write_case(tmp_path, A)
    write_case(tmp_path, B)
    return tmp_path


def codes(result: Audit) -> tuple[list[str], list[str]]:
    return sorted(f.code for f in result.errors), sorted(f.code for f in result.warnings)


def only(findings: tuple[Finding, ...], code: str) -> Finding:
    (finding,) = [f for f in findings if f.code == code]
    return finding


def test_complete_data_has_no_findings_and_the_right_facts(two):
    result = audit(two)
    assert codes(result) == ([], [])
    facts = result.facts
    assert (facts["patients"], facts["slices"], facts["positive_slices"]) == (2, 6, 4)
    assert facts["slices_per_patient"] == (3, 3, 3)
    assert facts["positive_per_patient"] == (2, 2, 2)
    assert facts["institutions"] == {"CS": 2}
    assert facts["sizes"] == {"16x16": 6}
    assert facts["largest_tumour"] == 3 * 4
    assert facts["complete_patients"] == 2
    flair = [np.mean([tiffs.image_of(f"{name}_{n}")[..., 1] for n in (1, 2, 3)]) for name in (A, B)]
    assert facts["flair_ratio"] == pytest.approx(max(flair) / min(flair))


def test_a_missing_folder_raises_and_an_empty_one_is_a_finding(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        audit(tmp_path / "nowhere")
    assert codes(audit(tmp_path)) == (["no-slices"], [])


@pytest.mark.parametrize(
    ("damage", "target", "code"),
    [
        (tiffs.truncate, f"{A}_2.tif", "truncated"),
        (tiffs.two_pages, f"{A}_2_mask.tif", "multi-page"),
        (lambda p: tiffs.write(p, tiffs.mask_of() // 3), f"{A}_2_mask.tif", "mask-values"),
        (lambda p: tiffs.write(p, tiffs.mask_of(8)), f"{A}_2_mask.tif", "mask-size"),
    ],
)
def test_a_broken_file_is_an_error_with_its_name_and_patient(two, damage, target, code):
    damage(two / A / target)
    result = audit(two)
    assert codes(result)[0] == [code]
    error = result.errors[0]
    assert error.where == (str(two / A / target), "TCGA_CS_4941")
    assert target in error.message
    assert result.facts["slices"] == 6


def test_all_errors_are_reported_at_once(two):
    tiffs.truncate(two / A / f"{A}_1.tif")
    tiffs.two_pages(two / A / f"{A}_1_mask.tif")  # an image and its mask are read independently
    tiffs.sixteen_bits(two / A / f"{A}_2.tif")
    tiffs.giant(two / B / f"{B}_1.tif")
    (two / B / f"{B}_3_mask.tif").unlink()
    (two / A / f"{A}_3.tif").unlink()
    result = audit(two)
    assert codes(result)[0] == ["dtype", "giant", "multi-page", "orphan-image", "orphan-mask", "truncated"]
    assert only(result.errors, "orphan-image").where == ("TCGA_CS_4942", str(two / B / f"{B}_3.tif"))
    assert only(result.errors, "orphan-mask").where == ("TCGA_CS_4941", str(two / A / f"{A}_3_mask.tif"))


def test_a_doubled_tree_is_a_warning_and_a_different_copy_an_error(two):
    shutil.copytree(two / A, two / "again" / A)
    shutil.copytree(two / B, two / "again" / B)
    result = audit(two)
    assert codes(result) == ([], ["doubled-tree"])
    assert set(result.warnings[0].where) == {str(two / "again" / A), str(two / "again" / B)}
    assert result.facts["slices"] == 6
    tiffs.write(
        two / "again" / B / f"{B}_3.tif", tiffs.image_of("changed")
    )  # loading compares only the middle slice
    changed = only(audit(two).errors, "copies-differ")
    assert changed.where[0] == "TCGA_CS_4942"
    assert str(two / "again" / B) in changed.where


def test_gaps_numbering_duplicates_and_unnumbered_files_are_found(tmp_path):
    write_case(tmp_path, A, [2, 3, 6])
    write_case(tmp_path, B)
    for end in ("", "_mask"):
        shutil.move(tmp_path / B / f"{B}_3{end}.tif", tmp_path / B / f"{B}_02{end}.tif")
    tiffs.write(tmp_path / A / "overview.tif", tiffs.image_of("o"))
    result = audit(tmp_path)
    assert codes(result) == (["duplicate-number"], ["numbering", "slice-gap", "unnumbered"])
    assert only(result.warnings, "slice-gap").where == ("TCGA_CS_4941", "4", "5")
    assert only(result.warnings, "numbering").where == ("TCGA_CS_4941", str(tmp_path / A / f"{A}_2.tif"))
    assert only(result.warnings, "unnumbered").where == (str(tmp_path / A / "overview.tif"),)
    duplicates = only(result.errors, "duplicate-number").where
    assert set(duplicates[1:]) == {str(tmp_path / B / f"{B}_{n}.tif") for n in ("2", "02")}


def test_an_image_of_another_size_is_named(two):
    for end, pixels in (("", tiffs.image_of("large", 24)), ("_mask", tiffs.mask_of(24))):
        tiffs.write(two / B / f"{B}_2{end}.tif", pixels)
    warning = only(audit(two).warnings, "image-size")
    assert warning.where == (str(two / B / f"{B}_2.tif"),)
    assert "dataset.resize" in warning.message


def rewrite(folder: Path, change) -> None:
    for path in folder.glob("*[0-9].tif"):
        image = tifffile.imread(path)
        change(image)
        tiffs.write(path, image)


def test_a_substituted_channel_equals_flair_in_every_slice(two):
    def post_is_flair(image):
        image[..., 2] = image[..., 1]

    rewrite(two / A, post_is_flair)
    image = tifffile.imread(two / B / f"{B}_2.tif")
    post_is_flair(image)
    tiffs.write(two / B / f"{B}_2.tif", image)  # one slice is not a missing sequence
    result = audit(two)
    assert only(result.warnings, "substituted-channel").where == ("TCGA_CS_4941", "post")
    assert result.facts["without_post"] == ["TCGA_CS_4941"]
    assert result.facts["without_pre"] == []
    assert result.facts["complete_patients"] == 1


def test_blank_channels_are_named_and_not_taken_for_a_substitution(two):
    image = tifffile.imread(two / A / f"{A}_3.tif")
    image[..., 2] = 0
    tiffs.write(two / A / f"{A}_3.tif", image)
    result = audit(two)
    warning = only(result.warnings, "blank-channel")
    assert warning.where == ("TCGA_CS_4941", str(two / A / f"{A}_3.tif"))
    assert "post channel" in warning.message
    assert "1 of 3" in warning.message

    rewrite(two / B, lambda image: image.fill(7))
    blank = [f for f in audit(two).warnings if f.where[0] == "TCGA_CS_4942"]
    assert [f.code for f in blank] == ["blank-channel"] * 3
    assert all("all slices" in f.message for f in blank)


def test_a_patient_without_tumour_is_named(two):
    for path in (two / B).glob("*_mask.tif"):
        tiffs.write(path, tiffs.mask_of(positive=False))
    assert only(audit(two).warnings, "no-tumour").where == ("TCGA_CS_4942",)


def test_an_image_in_two_patients_is_a_leak(two):
    shutil.copy(two / A / f"{A}_2.tif", two / B / f"{B}_3.tif")
    result = audit(two)
    error = only(result.errors, "shared-slice")
    assert set(error.where) == {
        "TCGA_CS_4941", "TCGA_CS_4942", str(two / A / f"{A}_2.tif"), str(two / B / f"{B}_3.tif"),
    }  # fmt: skip
    assert "repeated-slice" not in codes(result)[1]


def test_a_repeated_image_is_a_warning_and_blank_slices_are_not_a_leak(two):
    shutil.copy(two / A / f"{A}_2.tif", two / A / f"{A}_3.tif")
    for name in (A, B):
        tiffs.write(two / name / f"{name}_1.tif", np.zeros((16, 16, 3), np.uint8))
    result = audit(two)
    assert codes(result)[0] == []
    assert set(only(result.warnings, "repeated-slice").where[1:]) == {
        str(two / A / f"{A}_{n}.tif") for n in (2, 3)
    }


def test_patients_and_rows_of_the_table_are_compared(two):
    (two / "data.csv").write_text("Patient,RNASeqCluster\nTCGA_CS_4941,1\nTCGA_CS_9999,2\nTCGA_CS_9999,2\n")
    result = audit(two)
    assert codes(result) == ([], ["patient-without-row", "repeated-row", "row-without-patient"])
    assert only(result.warnings, "patient-without-row").where == ("TCGA_CS_4942",)
    assert only(result.warnings, "row-without-patient").where == ("TCGA_CS_9999",)


def test_a_table_with_semicolons_and_crlf_is_a_warning_and_still_read(two):
    (two / "data.csv").write_bytes(b"Patient;RNASeqCluster\r\nTCGA_CS_4941;1\r\nTCGA_CS_4942;2\r\n")
    result = audit(two)
    assert codes(result) == ([], ["table-dialect"])
    assert "semicolons and CRLF" in result.warnings[0].message
    assert result.warnings[0].where == (str(two / "data.csv"),)
    (two / "data.csv").write_text("Name,RNASeqCluster\nTCGA_CS_4941,1\n")
    assert "no column 'Patient'" in only(audit(two).warnings, "table-unreadable").message


def test_an_institution_with_one_patient_is_named(two):
    write_case(two, "TCGA_EZ_7264_20010816")
    assert only(audit(two).warnings, "lone-institution").where == ("EZ", "TCGA_EZ_7264")


def test_other_names_have_an_unknown_institution_without_a_warning(tmp_path):
    write_case(tmp_path, "patient7")
    result = audit(tmp_path)
    assert codes(result) == ([], [])
    assert result.facts["institutions"] == {"unknown": 1}


def test_a_phantom_is_recognised_and_must_not_be_mixed(tmp_path):
    write_phantom(tmp_path / "p", patients=2, size=32, slices=6, institutions=1)
    assert codes(audit(tmp_path)) == ([], [])
    assert audit(tmp_path).facts["synthetic"]
    write_case(tmp_path, A)
    assert only(audit(tmp_path).errors, "mixed-phantom").where == ("TCGA_CS_4941",)


def test_progress_is_reported_after_each_slice(two):
    calls: list[tuple[int, int]] = []
    audit(two, tick=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 6) for n in range(1, 7)]


@pytest.mark.slow
def test_the_real_data_has_the_published_problems_and_no_errors(lgg_folder):
    """Expected values are those of the full dataset, restricted to the patients of this copy."""
    result = audit(lgg_folder)
    facts = result.facts
    present = {p.name[:12] for p in lgg_folder.rglob("TCGA_*") if p.is_dir()}
    no_pre = {"DU_7013", "FG_A60K", "HT_7877", "HT_8105", "HT_A616", "HT_A61B"}
    no_post = no_pre | {"DU_6407", "DU_7301", "DU_8165", "FG_7634"}
    assert set(facts["without_pre"]) == {f"TCGA_{c}" for c in no_pre} & present
    assert set(facts["without_post"]) == {f"TCGA_{c}" for c in no_post} & present
    assert facts["complete_patients"] == len(present - {f"TCGA_{c}" for c in no_post})
    assert facts["sizes"] == {"256x256": facts["slices"]}
    assert only(result.warnings, "lone-institution").where == ("EZ", "TCGA_EZ_7264")
    assert facts["slices_per_patient"][::2] == (20, 88)
    assert {"shared-slice", "mask-values", "no-tumour"}.isdisjoint(f.code for f in result.errors + result.warnings)
    if len(present) == 88:  # counted with a plain glob and tifffile.imread
        assert (facts["patients"], facts["slices"], facts["positive_slices"]) == (88, 3093, 1110)
        assert facts["institutions"] == {"CS": 13, "DU": 36, "EZ": 1, "FG": 11, "HT": 27}
        assert facts["positive_per_patient"][::2] == (3, 30)
        assert facts["flair_ratio"] == pytest.approx(4.2281556, rel=1e-6)
        assert len(only(result.warnings, "row-without-patient").where) == 22
        assert result.errors == ()


def test_an_absent_structure_is_named_and_padded_slices_may_differ_in_size():
    masks = {"p1": [[1, 2, 0]], "p2": [[0, 3], [0, 1]]}  # bits: core is 1, rim is 2
    slices = tuple(SliceFile(c, 1, "DU", Path(c), None, size=np.shape(m)) for c, m in masks.items())
    images = {c: np.arange(np.size(m), dtype=np.uint8).reshape(*np.shape(m), 1) for c, m in masks.items()}
    only_core = {**masks, "p2": [[0, 1], [0, 1]]}

    def found(masks: dict[str, list[list[int]]]) -> Audit:
        two = Structures(("core", "rim"), ((1,), (2,)))
        read = {c: (images[c], np.array(m, np.uint8)) for c, m in masks.items()}
        return audit_source(Source("toy", slices, lambda s: read[s.case], ("flair",), "none", structures=two))

    assert codes(found(masks)) == ([], [])
    assert found(masks).facts["patients_with"] == {"core": 2, "rim": 2}
    assert found(masks).facts["largest_structure"] == 2
    assert found(only_core).facts["patients_with"] == {"core": 2, "rim": 1}
    warning = only(found(only_core).warnings, "no-rim")
    assert warning.message == "p2 has no rim in any mask: its dice[rim] is not defined."
