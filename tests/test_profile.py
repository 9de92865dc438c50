"""Profiles as files."""

import pytest

from vidaccel import profile as profiles
from vidaccel.methods import METHODS
from vidaccel.profile import Profile
from vidaccel.schedule import Schedule


def test_round_trip(tmp_path):
    profile = Profile("radial", {"decay": 0.5}, {"dense_first_steps": 0.1}, 100, ("some/model",), "a test")
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_shipped_profiles_are_usable_and_found():
    for profile in profiles.shipped().values():
        METHODS[profile.method].for_family("wan", **profile.options)
        Schedule.of(profile.schedule)
        assert profile.source and all(profiles.find(model) == profile for model in profile.models)
    assert profiles.find("nobody/no-such-model") is None and profiles.find(None) is None


def test_a_profile_in_the_models_folder_is_found(tmp_path):
    profile = Profile("radial", {"block": 16})
    profile.save(tmp_path / profiles.FILE)
    assert profiles.find(str(tmp_path)) == profile


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{", "not JSON"),
        ("[]", "not a vidaccel profile"),
        ('{"method": "radial"}', "format"),
        ('{"format": 1}', "without a method"),
        ('{"format": 1, "method": 3}', "method=3"),
        ('{"format": 1, "method": "radial", "pickle": "x"}', "does not belong"),
    ],
)
def test_bad_profiles(tmp_path, content, complaint):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=complaint):
        Profile.load(tmp_path / "p.json")
    with pytest.raises(ValueError, match="no profile at"):
        Profile.load(tmp_path / "absent.json")
