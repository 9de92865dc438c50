"""Profiles as files: written, read, found, checked against a model, and refused."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

import vidaccel
from tests.test_heads import table
from tests.tiny import tiny_wan
from vidaccel import architecture, strict
from vidaccel import profile as profiles
from vidaccel.compensation import compensation
from vidaccel.heads import HeadOption, HeadsAt, HeadTable, layout_of
from vidaccel.layout import TokenLayout
from vidaccel.methods import METHODS, ModelFacts
from vidaccel.patterns.decay import Decay
from vidaccel.patterns.simple import Dense
from vidaccel.profile import Profile
from vidaccel.schedule import Schedule

CONFIG = {"num_layers": 2, "patch_size": (1, 2, 2), "image_dim": None, "_class_name": "X", "_name_or_path": "a/b",
          "_diffusers_version": "0.35", "quantization_config": {"bits": 4}}  # fmt: skip
FACTS = ModelFacts("WanTransformer3DModel", CONFIG, 2, 2, 64)


def full() -> Profile:
    return Profile(
        "head_profile", {"density": 0.5}, {"dense_first_steps": 0.1}, 100, ("some/model",), "a test", None,
        architecture.describe({"transformer": FACTS}), {"grid": [5, 4, 6], "seed": 0}, table(),
    )  # fmt: skip


def test_round_trip(tmp_path):
    plain = Profile("radial", {"decay": 0.5}, {"dense_first_steps": 0.1}, 100, ("some/model",), "a test")
    for profile in (plain, full()):
        profile.save(tmp_path / "p.json")
        again = Profile.load(tmp_path / "p.json")
        assert again == profile
        assert again.reference == str(tmp_path / "p.json")
        assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("given", ["centroid", {"name": "residual", "refresh": 3}])
def test_a_profile_sets_the_compensation_and_the_call_overrides_it(tmp_path, given):
    Profile("radial", {"block": 16}, compensation=given).save(tmp_path / "p.json")
    profile, pipe = Profile.load(tmp_path / "p.json"), tiny_wan()
    assert profile.compensation == given
    with vidaccel.enable(pipe, profile, min_tokens=0) as session:
        assert session.setting.compensation == compensation(given)
    with vidaccel.enable(pipe, profile, min_tokens=0, compensation={"name": "centroid", "kept_mb": 1}) as session:
        assert session.setting.compensation == compensation({"name": "centroid", "kept_mb": 1})
    with pytest.raises(ValueError, match="unknown compensation 'luck'; choose centroid, residual"):
        vidaccel.enable(pipe, dataclasses.replace(profile, compensation="luck"))


def test_a_file_has_only_what_there_is_and_short_lines(tmp_path):
    Profile("radial").save(tmp_path / "p.json")
    assert set(json.loads((tmp_path / "p.json").read_text())) == {
        "format", "method", "options", "schedule", "min_tokens", "models", "source", "precision",
    }  # fmt: skip
    full().save(tmp_path / "p.json")
    text = (tmp_path / "p.json").read_text()
    assert json.loads(text)["calibration"] == {"grid": [5, 4, 6], "seed": 0}
    assert len(text.splitlines()) > 5 and max(map(len, text.splitlines())) < 140


def test_what_json_lacks_is_not_saved(tmp_path):
    for calibration in ({"when": object()}, {"seconds": float("nan")}):
        with pytest.raises(ValueError):
            Profile("radial", calibration=calibration).save(tmp_path / "p.json")
    assert not list(tmp_path.iterdir())


def test_save_pretrained_and_from_pretrained(tmp_path):
    path = full().save_pretrained(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "vidaccel.json"
    for source in (path.parent, str(path.parent)):
        assert Profile.from_pretrained(source) == full()
    assert Profile.from_pretrained(path.parent).reference == str(path)
    with pytest.raises(ValueError, match="no profile at .*vidaccel.json"):
        Profile.from_pretrained(tmp_path)


def test_of_a_repository_only_the_profile_is_downloaded(tmp_path, monkeypatch):
    asked = []

    def download(repository, name, revision=None):
        asked.append((repository, name, revision))
        return str(full().save_pretrained(tmp_path))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert Profile.from_pretrained("some/model") == full()
    assert Profile.from_pretrained("some/model", revision="v1").reference == "some/model@v1"
    assert Profile.read("some/model@v1").reference == "some/model@v1"
    assert Profile.read("some/model").reference == "some/model"
    assert asked == [("some/model", "vidaccel.json", each) for each in (None, "v1", "v1", None)]


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline\nmode"), ConnectionError("no route")])
def test_a_repository_that_cannot_be_read(monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ValueError, match="no vidaccel.json from repository 'some/model'") as caught:
        Profile.from_pretrained("some/model")
    assert type(error).__name__ in str(caught.value) and "\n" not in str(caught.value)
    assert issubclass(RepositoryNotFoundError, OSError)


@pytest.mark.parametrize("reference", ["", "a\0b", 3, None, "no-such-folder", "a/b/c", "../x/y", "https://x.org/p"])
def test_references_that_name_nothing(reference):
    with pytest.raises(ValueError, match="names no profile|neither a folder nor a repository id"):
        Profile.read(reference)


def test_references_of_every_kind(tmp_path, monkeypatch):
    path = full().save_pretrained(tmp_path / "m")
    monkeypatch.setattr("vidaccel.miniature.miniature_path", lambda name: {"tiny": path.parent}[name])
    for reference in (str(path), str(path.parent), "miniature:tiny"):
        made = Profile.read(reference)
        assert made == full() and made.reference == reference


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
    assert profiles.find(str(tmp_path)).reference == str(tmp_path / profiles.FILE)


def test_a_fingerprint_is_of_the_architecture_alone():
    same = {**CONFIG, "_name_or_path": "elsewhere", "_diffusers_version": "9", "patch_size": [1, 2, 2],
            "quantization_config": None}  # fmt: skip
    assert architecture.fingerprint(CONFIG) == architecture.fingerprint(dict(reversed(same.items())))
    assert architecture.fingerprint(CONFIG) != architecture.fingerprint({**CONFIG, "num_layers": 3})
    assert "a/b" not in json.dumps(architecture.describe({"transformer": FACTS}))


def test_the_model_that_it_was_made_for_passes():
    full().check({"transformer": FACTS})
    newer = {**CONFIG, "added_by_a_newer_diffusers": 1}
    full().check({"transformer": dataclasses.replace(FACTS, config=newer)})
    Profile("radial").check({"any": FACTS})


@pytest.mark.parametrize(
    "models, complaint",
    [
        ({"transformer": dataclasses.replace(FACTS, name="Other")}, "made for a WanTransformer3DModel, not a Other"),
        ({"transformer": dataclasses.replace(FACTS, layers=3)}, "made for 2 layers, the model has 3"),
        ({"transformer": dataclasses.replace(FACTS, heads=5)}, "made for 2 heads, the model has 5"),
        ({"transformer": dataclasses.replace(FACTS, config={**CONFIG, "image_dim": 8})}, "image_dim is 8, there None"),
        ({"transformer": FACTS, "transformer_2": FACTS}, "knows transformer, but the model has transformer_2"),
    ],
)
def test_other_models_are_refused_with_the_reason(models, complaint):
    with pytest.raises(ValueError, match=complaint):
        full().check(models)


def broken(**changes) -> str:
    """A whole profile as JSON with some of its entries replaced."""
    return json.dumps({**full().to_dict(), **changes})


def with_model(**changes) -> str:
    made = architecture.describe({"transformer": FACTS})
    made["transformer"] |= changes
    return broken(model=made)


SMALL = TokenLayout(2, 3, 4, text_before=5)


def two() -> Profile:
    """A profile of two sizes."""
    return dataclasses.replace(full(), calibration={"grid": "5x4x6"}, heads_at=(HeadsAt(SMALL, full().heads),))


def at_sizes(change=None, **changes) -> str:
    """Its JSON with some entries of the second size, or of the file, replaced."""
    values = two().to_dict()
    values["heads_at"][0] |= change or {}
    return json.dumps(values | changes)


def with_bands() -> dict:
    """Heads of another number of bands."""
    heads = full().heads.to_dict()
    bands = [0.5, 1.0] if len(heads["bands"]) == 1 else [1.0]
    experts = {name: [each[0]] * len(bands) for name, each in heads["experts"].items()}
    return heads | {"bands": bands, "experts": experts}


def other_heads() -> dict:
    """Heads of another expert."""
    heads = full().heads.to_dict()
    return heads | {"experts": {"other": heads["experts"]["transformer"]}}


START = '{"format": 1, "method": "radial"'
HOSTILE = [
    ("{", "not JSON"),
    ("", "not JSON"),
    ("[]", "not a vidaccel profile"),
    ('"x"', "not a vidaccel profile"),
    ('{"method": "radial"}', "format"),
    ('{"format": true, "method": "radial"}', 'needs "format": 1'),
    ('{"format": 2, "method": "radial"}', 'needs "format": 1'),
    ('{"format": 1}', "without a method"),
    ('{"format": 1, "method": 3}', "method=3"),
    (START + ', "pickle": "x"}', "pickle='x' does not belong"),
    (START + ', "method": "svg"}', "'method' stands twice"),
    (START + ', "reference": "x"}', "reference='x' does not belong"),
    (START + ', "min_tokens": true}', "min_tokens=True does not belong"),
    (START + ', "min_tokens": -1}', "min_tokens is -1"),
    (START + ', "min_tokens": 1e999}', "'1e999' is too large"),
    (START + ', "min_tokens": 1' + "0" * 5000 + "}", "5001 digits is too large"),
    (START + ', "options": {"decay": NaN}}', "NaN is not a number"),
    (START + ', "options": {"decay": -Infinity}}', "-Infinity is not a number"),
    (START + ', "options": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    (START + ', "options": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}", "nested too deeply"),
    (START + ', "calibration": {"a": ' + "[" * 40 + "]" * 40 + "}}", "nested too deeply"),
    (START + ', "options": {"a": 1, "a": 2}}', "'a' stands twice"),
    (START + ', "options": []}', r"options=\[\] does not belong"),
    (START + ', "models": [3]}', "one of its models is 3"),
    (START + ', "models": "a/b"}', "models='a/b' does not belong"),
    (json.dumps({"format": 1, "method": "radial", "models": ["a/b"] * 257}), "models has 257 entries"),
    (json.dumps({"format": 1, "method": "x" * 300}), "method is 'x+..., not a text of at most 256"),
    (json.dumps({"format": 1, "method": "radial", "source": "x" * 5000}), "source is 'x+..., not a text"),
    (json.dumps({"format": 1, "method": "radial", "y" * 5000: "x" * 5000}), "y+...='x+... does not belong"),
    (START + ', "compensation": 3}', "compensation=3 does not belong"),
    (START + ', "compensation": true}', "compensation=True does not belong"),
    (START + ', "compensation": {}}', "compensation has 0 entries"),
    (START + ', "compensation": {"kept_mb": 1}}', "compensation: name is None"),
    (START + ', "compensation": {"name": "centroid", "kept_mb": [1]}}', r"compensation: 'kept_mb' is \[1\], not one"),
    (START + ', "heads": []}', r"heads=\[\] does not belong"),
    (START + ', "heads": {}}', "heads has no 'block'"),
    (START + ', "model": {}}', "not an object of 1 to 8 experts"),
    (START + ', "calibration": 3}', "calibration=3 does not belong"),
    (broken(options={"profile": "/etc/other.json"}), "no option 'profile'"),
    (broken(options={"digest": "x"}), "no option 'digest'"),
    (broken(method="radial"), "heads are for method 'head_profile', not 'radial'"),
    (with_model(layers=True), "layers is True"),
    (with_model(heads=0), "heads is 0"),
    (with_model(layers=3), "not those of the 3 layers of 2 heads"),
    (with_model(config={"num_layers": 7}), "fingerprint is not that of its config"),
    (with_model(fingerprint=7), "fingerprint is not that of its config"),
    (with_model(config=[]), "fingerprint is not that of its config"),
    (with_model(**{"class": ["x"]}), r"class is \['x'\]"),
    (with_model(path="x"), "'path', which does not belong there"),
    (START + ', "heads_at": []}', "heads_at are beside heads, and there are none"),
    (at_sizes(heads_at=None), "heads_at=None does not belong"),
    (at_sizes(heads_at={}), "heads_at={} does not belong"),
    (at_sizes(heads_at=[]), "heads_at has 0 entries, not 1 to 8"),
    (at_sizes(heads_at=two().to_dict()["heads_at"] * 9), "heads_at has 9 entries, not 1 to 8"),
    (at_sizes(heads_at=two().to_dict()["heads_at"] * 2), r"heads_at\[1\] is on 2x3x4 after 5 text, as others of"),
    (at_sizes(heads_at=["x"]), r"heads_at\[0\] is 'x', not an object"),
    (at_sizes(heads_at=[{"grid": "2x3x4"}]), r"heads_at\[0\] has no 'heads'"),
    (at_sizes({"path": "x"}), r"heads_at\[0\] has 'path', which does not belong there"),
    (at_sizes({"grid": "5x4x6"}), r"heads_at\[0\] is on 5x4x6, as others of this profile are"),
    (at_sizes({"grid": 5}), r"heads_at\[0\]: grid is 5, not a token grid"),
    (at_sizes({"grid": "2x3"}), "grid is '2x3', not a token grid"),
    (at_sizes({"grid": "0x3x4"}), "grid is '0x3x4', not a token grid"),
    (at_sizes({"grid": "02x3x4"}), "grid is '02x3x4', not a token grid"),
    (at_sizes({"grid": "2x3x4 after 0 text"}), "not a token grid"),
    (at_sizes({"grid": "2x3x4\n"}), "not a token grid"),
    (at_sizes({"grid": "\u0662x3x4"}), "not a token grid"),
    (at_sizes({"grid": "2x3x4 + 1" + "0" * 5000 + " text"}), "not a token grid"),
    (at_sizes({"heads": {}}), r"heads_at\[0\]: heads has no 'block'"),
    (at_sizes({"heads": full().heads.to_dict() | {"block": 17}}), r"heads_at\[0\]: block 17 is not a power of two"),
    (at_sizes({"heads": with_bands()}), "heads or bands on 2x3x4 after 5 text are not as in the profile's heads"),
    (at_sizes({"heads": other_heads()}), "are not as in the profile's heads"),
    (at_sizes({"heads": full().heads.to_dict() | {"patterns": [{"name": {"text": 99}}]}}), "the place of a text is 99"),
    (at_sizes(calibration=None), "calibration: grid is None, not a token grid"),
    (at_sizes(calibration={}), "calibration: grid is None, not a token grid"),
    (at_sizes(calibration={"grid": ["5x4x6"]}), "calibration: grid is .*, not a token grid"),
    (at_sizes(method="radial"), "heads are for method"),
]  # fmt: skip


@pytest.mark.parametrize("content, complaint", HOSTILE, ids=[complaint for _, complaint in HOSTILE])
def test_bad_profiles(tmp_path, content, complaint):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        Profile.load(tmp_path / "p.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 + len(str(tmp_path))


def test_files_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no profile at .*absent.json: No such file"):
        Profile.load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="no profile at .*: a folder or device"):
        Profile.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="no profile at .*: a folder or device"):
        Profile.load(tmp_path / "pipe.json")
    (tmp_path / "latin.json").write_bytes(b'{"format": 1, "method": "r\xe4dial"}')
    with pytest.raises(ValueError, match="byte 26 is not UTF-8"):
        Profile.load(tmp_path / "latin.json")
    monkeypatch.setattr(strict, "MAX_BYTES", 1 << 20)
    (tmp_path / "large.json").write_text(START + "}" + " " * (1 << 20))
    with pytest.raises(ValueError, match="larger than the 1 MiB"):
        Profile.load(tmp_path / "large.json")


def test_two_sizes_round_trip_with_texts_that_both_have_once(tmp_path):
    """The second size's places count the first one's texts first; a text of its own follows."""
    shared, own = (Decay.of([torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)).double()] * 3, "FHW", 0.3)
                   for seed in (0, 1))  # fmt: skip

    def table(*patterns):
        last = len(patterns) - 1
        shares = [0.25 * at + 0.1 for at in range(last)] + [1.0]
        head = tuple(HeadOption(at, 1e-3 * (last - at), share, share) for at, share in enumerate(shares))
        return HeadTable(16, patterns, (1.0,), {"transformer": (((head,),),)})

    made = Profile("head_profile", {"density": 0.9}, heads=table(shared, Dense()), calibration={"grid": "5x4x6"},
                   heads_at=(HeadsAt(SMALL, table(own, shared, Dense())),))  # fmt: skip
    made.save(tmp_path / "p.json")
    values = json.loads((tmp_path / "p.json").read_text())
    assert values["heads"]["texts"] == [shared.weights]
    assert values["heads_at"][0]["grid"] == "2x3x4 after 5 text"
    other = values["heads_at"][0]["heads"]
    assert other["texts"] == [own.weights]
    assert [each.get("weights") for each in other["patterns"]] == [{"text": 1}, {"text": 0}, None]
    assert Profile.load(tmp_path / "p.json") == made == made.rounded()
    assert "heads_at" not in dataclasses.replace(made, heads_at=()).to_dict()


@pytest.mark.parametrize("layout", [TokenLayout(21, 45, 80), TokenLayout(3, 4, 5, 226), TokenLayout(3, 4, 5, 0, 256),
                                    TokenLayout(1, 1, 1, 2, 3)], ids=str)  # fmt: skip
def test_a_grid_is_read_from_its_text(layout):
    assert layout_of(str(layout), "it") == layout
