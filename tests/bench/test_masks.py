"""The quality benchmarks of masks: which evals they ask for, and what they make of records, here made up."""

import json
from pathlib import Path

import pytest

from vidaccel.eval.settings import Settings
from vidaccel.eval.table import RECORDS
from vidaccel.methods import METHODS
from vidaccel.profile import Profile

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="benchmarks are not part of the source distribution")


@pytest.fixture
def dynamic(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import dynamic_masks

    return dynamic_masks


@pytest.fixture
def static(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import static_masks

    return static_masks


def record(label: str, asked: float | None, snr: float | None, prompt: str = "a", **more):
    """A cell's record, as far as the benchmarks read it; `label` as an eval writes it."""
    made_up = label.partition("+")[2].partition("(")[0]
    video = more.pop("video", asked)
    attended = more.pop("attended", video)
    share = {"video_density": video, "density": attended, "computed_density": more.pop("computed", attended)}
    return {
        "label": label, "requested_density": asked, "baseline": None, "prompt": prompt, "seed": 0, "created": "now",
        "density": share if video else None, "compensation": {"name": made_up, "options": {}} if made_up else None,
        "metrics": {"latent_snr": snr}, "git": None, "device": {}, "versions": {}, **more,
    }  # fmt: skip


def twice(label: str, asked: float, snr: float, **more):
    """Its records on two prompts: `snr`, and two more."""
    return [record(label, asked, snr + 2 * at, prompt, **more) for at, prompt in enumerate("ab")]


def written(folder: Path, records) -> Path:
    folder.mkdir(parents=True)
    (folder / RECORDS).write_text("".join(json.dumps(each) + "\n" for each in records))
    return folder


@pytest.fixture
def asked(dynamic, monkeypatch):
    """Evals that would run: of each its folder and settings, which are checked as an eval checks them."""
    found = []

    def evaluate(out, family, values):
        Settings.of({name: item for name, item in values.items() if name != "prompts_file"})
        assert Path(values["prompts_file"]).exists()
        found.append((out, values))

    monkeypatch.setattr(dynamic, "evaluate", evaluate)
    return found


def test_every_method_runs_alone_and_with_centroids_at_every_density(dynamic, asked, tmp_path):
    dynamic.quick("wan", tmp_path, dynamic.DENSITIES, None)
    assert {out for out, _ in asked} == {tmp_path / "quick" / "wan"}
    cells = [(each["name"], each.get("compensation"), each["density"]) for _, values in asked
             for each in values["method"]]  # fmt: skip
    assert len(set(cells)) == len(cells)
    names = set(METHODS) - {"mixed"}  # which is a profile and semantic in one, and at these sizes the profile alone
    assert {each for each in cells if each[1] != "residual"} == {
        (name, made_up, density) for name in names for made_up in (None, "centroid") for density in dynamic.DENSITIES
    }
    assert {(name, density) for name, made_up, density in cells if made_up == "residual"} == {
        (name, density) for name in ("semantic", "head_profile", "draft") for density in (0.375, 0.125)
    }
    blocks = {each["name"]: each.get("block") for _, values in asked for each in values["method"]}
    assert blocks == {name: None if name == "head_profile" else 16 for name in names}


def test_the_most_important_come_first_and_fewer_steps_once(dynamic, asked, tmp_path):
    dynamic.quick("wan", tmp_path, [0.1], None)
    order = [(each["name"], each.get("compensation")) for _, values in asked for each in values["method"]]
    assert order[:5] == [("semantic", "centroid"), ("semantic", None), ("oracle", None), ("head_profile", None),
                         ("head_profile", "centroid")]  # fmt: skip
    assert [values["baselines"] for _, values in asked] == [["fewer-steps"], *[False] * (len(asked) - 1)]
    assert all(values["quick"] for _, values in asked)


def test_only_takes_a_method_or_a_pair(dynamic, asked, tmp_path):
    dynamic.quick("wan", tmp_path, [0.3, 0.2], ["draft", "oracle+centroid"])
    got = [(each["name"], each.get("compensation"), each["density"]) for _, values in asked
           for each in values["method"]]  # fmt: skip
    assert got == [("draft", None, 0.3), ("draft", None, 0.2), ("draft", "centroid", 0.3), ("draft", "centroid", 0.2),
                   ("oracle", "centroid", 0.3), ("oracle", "centroid", 0.2), ("draft", "residual", 0.125)]  # fmt: skip


def test_rows_keep_compensation_apart_and_residual_in_the_column_that_it_realised(dynamic, tmp_path):
    older = record("svg(block=16)", 0.3, 1.0)
    del older["compensation"]
    baseline = record("fewer-steps for semantic(block=16)+centroid", 0.3, 2.0, baseline={"kind": "fewer-steps"})
    records = [
        record("draft(block=16)", 0.3, 1.0), record("draft(block=16)+centroid", 0.3, 1.0),
        record("head_profile+centroid(kept_mb=1.0)", 0.3, 1.0),
        record("draft(block=16)+residual", 0.125, 1.0, video=0.3), record("draft(block=16)", 0.125, 1.0), older,
        baseline,
    ]  # fmt: skip
    assert list(dynamic.rows(written(tmp_path / "e", records), dynamic.row_of)) == [
        ("draft", 0.3), ("draft+centroid", 0.3), ("head_profile+centroid", 0.3), ("draft+residual", 0.3),
        ("draft", 0.125), ("svg", 0.3), ("fewer-steps", 0.3),
    ]  # fmt: skip


def test_table_shows_what_was_realised_and_computed(dynamic, tmp_path):
    records = [
        *twice("draft(block=16)", 0.2, 10, attended=0.26, computed=0.27),
        *twice("draft(block=16)", 0.5, 30, video=0.54), *twice("draft(block=16)+centroid", 0.2, 12, computed=0.27),
        *twice("semantic(block=16)", 0.1, 8, computed=0.13),
    ]  # fmt: skip
    found = dynamic.rows(written(tmp_path / "e", records), dynamic.row_of)
    assert dynamic.table(found, computed=True).splitlines()[2:] == [
        "| method | 0.5 | 0.3 | 0.2 | 0.1 |",
        "|---|---|---|---|---|",
        "| draft | 31.0 (0.54) | - | 11.0 | - |",
        "| draft+centroid | - | - | 13.0 | - |",
        "| computed | - | - | 0.27 | - |",
        "| semantic | - | - | - | 9.0 |",
        "| computed | - | - | - | 0.13 |",
    ]
    assert "computed" not in dynamic.table(found)


RANKING = [
    *twice("semantic(block=16)+centroid", 0.1, 14), *twice("draft(block=16)+centroid", 0.1, 15),
    *twice("svg(block=16)+centroid", 0.1, 10), *twice("svg(block=16)", 0.1, 5), *twice("draft(block=16)", 0.1, 6),
    *twice("svg(block=16)", 0.2, 12), *twice("draft(block=16)", 0.2, 13), *twice("nabla(block=16)", 0.2, 9),
    *twice("meansim(block=16)", 0.2, 20, video=0.3), *twice("oracle(block=16)", 0.2, 16),
    *twice("semantic(block=16)+centroid", 0.2, 17), *twice("random(block=16)", 0.2, 30),
]  # fmt: skip


def test_finalists_are_the_best_that_keep_to_the_density(dynamic, asked, tmp_path):
    found = dynamic.rows(written(tmp_path / "quick" / "wan", RANKING), dynamic.row_of)
    assert dynamic.chosen(found, 0.1) == ["semantic+centroid", "draft", "oracle", "draft+centroid"]
    assert dynamic.chosen(found, 0.2) == ["draft", "svg", "oracle", "semantic+centroid"]
    dynamic.finalists("wan", tmp_path, [0.1, 0.2])
    ((out, values),) = asked
    assert out == tmp_path / "finalists" / "wan" and "quick" not in values
    assert [(each["name"], each["density"]) for each in values["method"]] == [
        ("semantic", 0.1), ("draft", 0.1), ("oracle", 0.1), ("draft", 0.1),
        ("draft", 0.2), ("svg", 0.2), ("oracle", 0.2), ("semantic", 0.2),
    ]  # fmt: skip


def test_identical_latents_rank_first(dynamic, tmp_path):
    records = [*RANKING, record("asa(block=16)", 0.2, None), record("asa(block=16)", 0.2, 3.0, "b")]
    assert dynamic.ranked(dynamic.rows(written(tmp_path / "e", records), dynamic.row_of), 0.2, False)[0] == "asa"


def test_key_comparison_is_of_the_flagship_with_all_that_is_not_compensated(dynamic, tmp_path):
    found = list(dynamic.comparisons(dynamic.rows(written(tmp_path / "e", RANKING), dynamic.row_of)))
    key = {each["against"]: each for each in found if each["comparison"] == "key"}
    assert set(key) == {"svg", "draft", "nabla", "meansim", "oracle", "random"}
    assert key["oracle"]["mean"] == -2 and key["oracle"]["verdict"] == "lower"
    assert key["nabla"]["mean"] == 5 and key["nabla"]["verdict"] == "higher"
    assert (key["meansim"]["density"], key["meansim"]["against_density"]) == (0.1, 0.2)
    assert (key["meansim"]["first_video_density"], key["meansim"]["against_video_density"]) == (0.1, 0.3)
    on = {each["first"]: each["mean"] for each in found if each["comparison"] == "compensation"}
    assert on == {"draft+centroid": 9, "svg+centroid": 5}
    equal = {(each["density"], each["against"]) for each in found if each["comparison"] == "equal"}
    assert (0.2, "oracle") in equal and (0.1, "draft+centroid") in equal and (0.1, "semantic+centroid") not in equal


def test_report_records_rows_and_comparisons(dynamic, tmp_path, monkeypatch, capsys):
    written(tmp_path / "quick" / "wan", RANKING)
    monkeypatch.setattr(dynamic, "RESULTS", tmp_path / "lines.jsonl")
    dynamic.report(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    shared = {"benchmark": "dynamic_masks", "part": "quick", "family": "wan", "versions": {}}
    assert all(shared.items() <= each.items() for each in lines)
    rows = {(each["method"], each["density"]): each for each in lines if "method" in each}
    assert len(rows) == 12 and rows["draft+centroid", 0.1]["latent_snr"] == 16
    shown = capsys.readouterr().out
    assert "### quick, wan" in shown
    assert "- key: semantic+centroid at 0.1 minus oracle at 0.2, latent_snr: -2.000 (-2.000 to -2.000), lower" in shown


def test_static_masks_label_profiles_by_where_they_were_measured(static, tmp_path):
    records = [*twice("head_profile(profile=x/wan-small.json)", 0.3, 9), *twice("head_profile(profile=y)", 0.3, 4),
               *twice("head_profile(profile=miniature:wan)", 0.3, 8), *twice("svg(block=16)", 0.3, 1),
               *twice("head_profile(profile=x/wan-one.json)", 0.3, 6)]  # fmt: skip
    found = static.rows(written(tmp_path / "e", records), static.row_of)
    assert list(found) == [("made there", 0.3), ("head_profile", 0.3), ("both sizes", 0.3), ("svg", 0.3),
                           ("one size", 0.3)]  # fmt: skip
    pairs = {each["against"]: (each["first"], each["mean"]) for each in static.compared(found)}
    assert pairs["made there"] == ("head_profile", -5) and pairs["svg"] == ("head_profile", 3)
    pairs = {each["against"]: each["mean"] for each in static.compared(found, static.BOTH)}
    assert pairs["made there"] == -1 and pairs["one size"] == 2


def test_transfer_compares_the_shipped_profile_with_and_without_its_other_size(static, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(static, "evaluate", lambda out, family, values: found.append((out, values)))
    (tmp_path / "wan-small.json").write_text("made before")
    static.transfer("wan", tmp_path)
    ((out, values),) = found
    assert out == tmp_path / "transfer" / "wan" and (values["height"], values["width"]) == (96, 144)
    names = [each["profile"] for each in values["method"]]
    assert names == [str(tmp_path / "wan-small.json"), "miniature:wan", str(tmp_path / "wan-one.json")]
    both, one = Profile.read("miniature:wan"), Profile.load(names[2])
    assert [str(each.layout) for each in both.heads_at] == ["13x6x9"] and not one.heads_at and one.heads == both.heads
    assert {static.row_of(record(f"head_profile(profile={name})", 0.3, 1.0))[0] for name in names} == {
        "made there", "both sizes", "one size"}  # fmt: skip


def test_static_masks_ask_for_every_static_method(static, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(static, "evaluate", lambda out, family, values: found.append(values))
    static.quick("wan", tmp_path)
    names = [each["name"] for values in found for each in values["method"]]
    assert names == ["head_profile", "radial", "svg", "neighborhood", "random"]
    assert all(values["density"] == [0.5, 0.3, 0.2, 0.1] and values["quick"] for values in found)
    for values in found:
        Settings.of({name: item for name, item in values.items() if name != "prompts_file"})
