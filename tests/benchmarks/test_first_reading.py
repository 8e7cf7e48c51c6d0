"""Files of first_reading/ and of the later readings give what was read of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.first_reading import ROUNDS, differences, expected_of, files, read

QUICK = (
    "boxes",
    "cell_counts",
    "click_through",
    "hardest_triplets",
    "score_matching",
    "set_detector",
    "skip_gram",
    "style",
    "interests",
    "squashed_actor",
    "same_class",
    "spectral_critic",
    "kernel_jitter",
    "two_towers",
    "importance",
    "node_degrees",
    "gamma_rain",
    "running_observations",
    "masked_tokens",
    "student",
    "agents_mixing",
    "camera_pipeline",
    "crowd_points",
    "body_keypoints",
    "online_features",
    "one_shot_birds",
    "lane_markings",
    "phase_locking",
)
FILES = [file for name in ROUNDS for file in files(name)]


@pytest.mark.parametrize("name", ROUNDS)
def test_each_file_has_its_expectations(name: str) -> None:
    assert [file.stem for file in files(name)] == sorted(expected_of(name))


@pytest.mark.parametrize(
    "file", [pytest.param(each, marks=() if each.stem in QUICK else pytest.mark.full, id=each.stem) for each in FILES]
)
def test_a_file_gives_what_was_read_of_it(file: Path) -> None:
    reading = read(file)
    assert differences(file, reading) == []
    if file.stem in QUICK:
        assert reading.named == list(reading.planted)
