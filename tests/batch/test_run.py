from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.batch.clips import contents
from tests.crews import in_crew
from vidaccel.batch import Request, Result, folder, run
from vidaccel.eval.video import read_video
from vidaccel.processes import Crew, launched

PROMPTS = ["a red circle", "a blue square", "a star", "a cat", "a dog", "a bird"]
REQUESTS = [Request(number, prompt, 0) for number, prompt in enumerate(PROMPTS)]
CALL: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 32}


class Pipe:
    """Noise for a clip; what its prompts contain makes it fail."""

    def __init__(self, calls: list[str] | None = None, bad: tuple[str, ...] = (),
                 before: Callable[[], object] = lambda: None) -> None:  # fmt: skip
        self.calls, self.bad, self.before = calls if calls is not None else [], bad, before

    def __call__(self, prompt: str, generator: Any, output_type: str, num_inference_steps: int = 50, height: int = 64,
                 width: int = 64, negative_prompt: str = "", image: Any = None, callback_on_step_end: Any = None
                 ) -> Any:  # fmt: skip
        self.before()
        self.calls.append(prompt)
        for step in range(num_inference_steps):
            callback_on_step_end(self, step, 0, {})
        if any(word in prompt for word in self.bad):
            raise RuntimeError(f"no luck\nwith {prompt}")
        noise = torch.rand((2, height, width, 3), generator=generator)
        if image is not None:
            noise = noise * 0 + torch.from_numpy(np.asarray(image) / 255).float().mean()
        return SimpleNamespace(frames=[(noise * (0.5 if negative_prompt else 1)).numpy()])

    def set_progress_bar_config(self, **_: Any) -> None: ...


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launched, "POLL", 0.005)


def made(out: Path, requests: list[Request] = REQUESTS, pipe: Pipe | None = None, **values: Any) -> Result:
    given = {"call": CALL, "fps": 8.0, "about": {"model": "m", "attention": {"method": "dense"}}, "ending": ".mkv",
             **values}  # fmt: skip
    return run(lambda: (pipe or Pipe(), None), requests, out, **given)


def test_each_clip_has_a_video_and_a_record(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    result = made(tmp_path / "out", progress=lambda *what: told.append(what))
    assert result.to_dict() == {"kind": "batch", "out": str(tmp_path / "out"), "clips": 6, "done": 6, "skipped": 0,
                                "failed": {}, "untried": []}  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted([".lock", "batch.json", "clips.jsonl", *(f"{each.name}{ending}" for each in REQUESTS
                                                                    for ending in (".mkv", ".json"))])  # fmt: skip
    record = json.loads((tmp_path / "out" / "0001-a-blue-square-seed0.json").read_text())
    assert record["prompt"] == "a blue square" and record["seed"] == 0 and record["turn"] == 2
    assert record["settings"]["call"] == CALL and record["settings"]["attention"] == {"method": "dense"}
    assert (record["frames"], record["height"], record["width"]) == (2, 16, 32) and record["seconds"] > 0
    assert record["versions"]["torch"] == torch.__version__ and record["sparse"] is None
    path = tmp_path / "out" / record["file"]
    assert record["bytes"] == path.stat().st_size and record["sha256"] == folder.file_digest(path)
    stock = Pipe()("", torch.Generator().manual_seed(0), "np", 1, 16, 32, callback_on_step_end=lambda *_: None)
    assert (read_video(path) == (stock.frames[0].clip(0, 1) * 255).round().astype(np.uint8)).all()
    lines = (tmp_path / "out" / "clips.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == PROMPTS
    assert [what[:3] for what in told[:3]] == [("1/6 a red circle, seed 0", 1, 2), ("1/6 a red circle, seed 0", 2, 2),
                                               ("2/6 a blue square, seed 0", 1, 2)]  # fmt: skip
    assert told[-1][3] is not None and told[-1][3] < 60


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    expected, calls = tmp_path / "expected", list[str]()
    made(expected)

    class Stop(BaseException):
        pass

    def stop(label: str, *_: Any) -> None:
        if label.startswith("4/6"):
            raise Stop

    with pytest.raises(Stop):
        made(tmp_path / "out", progress=stop)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0*")}
    assert len(before) == 6 and len((tmp_path / "out" / "clips.jsonl").read_text().splitlines()) == 3
    said: list[str] = []
    result = made(tmp_path / "out", pipe=Pipe(calls), say=said.append)
    assert calls == PROMPTS[3:] and result.skipped == 3 and said == ["3 of 6 clips are done already"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(tmp_path / "out") == contents(expected)
    again = made(tmp_path / "out", pipe=Pipe(calls))
    assert len(calls) == 3 and again.skipped == again.done == 6, "the model is not even loaded"


def test_what_a_kill_left_is_not_taken_for_a_clip(tmp_path: Path) -> None:
    made(tmp_path)
    expected = contents(tmp_path)
    (tmp_path / f"{REQUESTS[0].name}.json").unlink()
    (tmp_path / f"{REQUESTS[1].name}.mkv").write_bytes(b"half")
    (tmp_path / f"{REQUESTS[2].name}.mkv").unlink()
    (tmp_path / f"{REQUESTS[3].name}.json").write_text("{")
    for name in (".0003-a-cat-seed0.77.part.mkv", ".0003-a-cat-seed0.json.77.part"):
        (tmp_path / name).write_text("half")
    calls: list[str] = []
    assert made(tmp_path, pipe=Pipe(calls)).skipped == 2
    assert calls == PROMPTS[:4] and contents(tmp_path) == expected and not list(tmp_path.glob(".*.part*"))


def test_prompts_and_seeds_can_be_added(tmp_path: Path) -> None:
    made(tmp_path, REQUESTS[:2])
    calls: list[str] = []
    more = [*REQUESTS[:3], Request(0, PROMPTS[0], 5)]
    assert made(tmp_path, more, Pipe(calls)).skipped == 2 and calls == ["a star", "a red circle"]
    assert made(tmp_path, REQUESTS[1:2], Pipe(calls)).skipped == 1
    assert len((tmp_path / "clips.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"fps": 9.0}, "fps is 8.0 there, and 9.0 was given"),
        ({"ending": ".mp4"}, 'file is ".mkv" there, and ".mp4" was given'),
        ({"call": {**CALL, "height": 32}}, "call.height is 16 there, and 32 was given"),
        ({"call": {**CALL, "negative_prompt": "x"}}, 'call.negative_prompt is none there, and "x" was given'),
        ({"about": {"model": "n", "attention": {"method": "radial"}}},
         'model is "m" there, and "n" was given; attention.method is "dense" there, and "radial" was given'),
    ],
)  # fmt: skip
def test_other_settings_are_refused(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    made(tmp_path, REQUESTS[:1])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="has clips of other settings: ") as error:
        made(tmp_path, pipe=Pipe(bad=("",)), **values)
    assert said in str(error.value) and contents(tmp_path) == before
    assert made(tmp_path, REQUESTS[:1]).skipped == 1


def test_another_clip_in_the_same_place_is_refused(tmp_path: Path) -> None:
    made(tmp_path, REQUESTS[:2])
    moved = [Request(0, "new", 0), *(Request(each.number + 1, each.prompt, 0) for each in REQUESTS[:2])]
    with pytest.raises(ValueError, match='another clip for prompt 1 and seed 0: prompt is "a red circle" there'):
        made(tmp_path, moved)
    own = Request(1, PROMPTS[1], 0, {"negative_prompt": "dull"})
    with pytest.raises(ValueError, match='own.negative_prompt is none there, and "dull" was given'):
        made(tmp_path, [own])


def test_settings_without_clips_bind_nobody(tmp_path: Path) -> None:
    assert made(tmp_path, pipe=Pipe(bad=("",))).done == 0
    assert made(tmp_path, call={**CALL, "height": 32}).done == 6
    (tmp_path / "batch.json").unlink()
    with pytest.raises(ValueError, match="batch.json cannot be read"):
        made(tmp_path, call={**CALL, "height": 32})


def test_a_clip_that_fails_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    result = made(tmp_path, pipe=Pipe(bad=("star", "dog")), say=said.append)
    names = [REQUESTS[2].name, REQUESTS[4].name]
    assert list(result.failed) == names and result.done == 4 and result.untried == []
    assert said[0] == f"{names[0]} failed: RuntimeError: no luck with a star" and len(said) == 2
    error = json.loads((tmp_path / f"{names[0]}.error.json").read_text())
    assert error["type"] == "RuntimeError" and "Traceback" in error["traceback"]
    calls: list[str] = []
    again = made(tmp_path, pipe=Pipe(calls))
    assert calls == ["a star", "a dog"] and again.failed == {} and not list(tmp_path.glob("*.error.json"))


def test_a_process_in_which_everything_fails_stops(tmp_path: Path) -> None:
    calls, said = list[str](), list[str]()
    result = made(tmp_path, pipe=Pipe(calls, ("a",)), say=said.append)
    assert calls == PROMPTS[:3] and len(result.failed) == 3 and result.done == 0
    assert result.untried == [each.name for each in REQUESTS[3:]]
    assert said[-1] == "3 clips failed one after the other: this process makes no more"


def test_images_are_of_all_or_of_one(tmp_path: Path) -> None:
    for name, value in (("dark", 10), ("light", 200)):
        Image.new("RGB", (32, 16), (value,) * 3).save(tmp_path / f"{name}.png")
    own = Request(1, "b", 0, {"image": str(tmp_path / "light.png")})
    made(tmp_path / "out", [Request(0, "a", 0), own], call={**CALL, "image": str(tmp_path / "dark.png")})
    clips = [read_video(path).mean() for path in sorted((tmp_path / "out").glob("*.mkv"))]
    assert clips == [10, 200]
    record = json.loads((tmp_path / "out" / f"{own.name}.json").read_text())
    assert record["own"]["image"].startswith("sha256:") != record["settings"]["call"]["image"]
    broken = Request(1, "b", 0, {"image": str(tmp_path / "absent.png")})
    with pytest.raises(ValueError, match="absent.png' cannot be read"):
        made(tmp_path / "other", [broken])
    assert not (tmp_path / "other").exists()


def test_what_the_pipeline_does_not_take_is_refused_before_any_clip(tmp_path: Path) -> None:
    calls: list[str] = []
    with pytest.raises(ValueError, match="Pipe takes no last_image"):
        made(tmp_path, [*REQUESTS, Request(6, "x", 0, {"last_image": str(picture(tmp_path))})], Pipe(calls))
    assert calls == [] and not (tmp_path / "batch.json").exists()


def picture(folder: Path) -> Path:
    Image.new("RGB", (4, 4)).save(folder / "x.png")
    return folder / "x.png"


# several processes


def shared(out: Path, size: int, pipe: Callable[[Crew], Pipe], requests: Callable[[Crew], list[Request]] | None = None
           ) -> list[Any]:  # fmt: skip
    return in_crew(size, lambda crew: made(out, requests(crew) if requests else REQUESTS, pipe(crew), crew=crew,
                                           say=lambda _: None))  # fmt: skip


def test_processes_share_the_clips(tmp_path: Path) -> None:
    made(tmp_path / "alone")
    calls, meet = list[str](), threading.Barrier(3)

    def each_has_one_before_any_has_two() -> None:
        if len(calls) < 3:
            meet.wait(20)

    found = shared(tmp_path / "out", 3, lambda crew: Pipe(calls, before=each_has_one_before_any_has_two))
    assert all(isinstance(each, Result) and each.done == 6 and each.failed == {} for each in found), found
    assert sorted(calls) == sorted(PROMPTS) and contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert len((tmp_path / "out" / "clips.jsonl").read_text().splitlines()) == 6


def test_what_fails_in_any_process_is_known_to_all(tmp_path: Path) -> None:
    found = shared(tmp_path, 2, lambda crew: Pipe(bad=("star", "dog")))
    assert all(list(each.failed) == [REQUESTS[2].name, REQUESTS[4].name] and each.done == 4 for each in found)


def test_a_broken_process_leaves_the_clips_to_the_others(tmp_path: Path) -> None:
    requests = [Request(number, f"a {number}", 0) for number in range(12)]
    found = shared(tmp_path, 2, lambda crew: Pipe(bad=() if crew.main else ("a",)), lambda crew: requests)
    assert all(len(each.failed) <= 3 and each.untried == [] and each.done >= 9 for each in found), found
    assert made(tmp_path, requests).done == 12


def test_processes_that_would_make_other_clips_are_refused(tmp_path: Path) -> None:
    found = shared(tmp_path / "out", 2, lambda crew: Pipe(), lambda crew: REQUESTS[crew.rank :])
    assert all(isinstance(each, ValueError) and "process 1 would make other clips than the main one: of other clips"
               in str(each) for each in found)  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_other_settings_are_refused_in_all_processes(tmp_path: Path) -> None:
    made(tmp_path, fps=9.0)
    found = shared(tmp_path, 2, lambda crew: Pipe())
    assert all(isinstance(each, ValueError) and "fps is 9.0 there" in str(each) for each in found)


def test_a_pipeline_that_cannot_be_loaded_ends_all(tmp_path: Path) -> None:
    def work(crew: Crew) -> Any:
        def load() -> Any:
            if crew.main:
                return Pipe(), None
            raise RuntimeError("out of memory")

        return run(load, REQUESTS, tmp_path, call=CALL, fps=8.0, about={}, crew=crew)

    main, other = in_crew(2, work)
    assert type(main) is RuntimeError and "process 1" in str(main) and "out of memory" in str(main)
    assert type(other) is RuntimeError and not list(tmp_path.glob("0*"))
