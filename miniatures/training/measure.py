"""Measure what a miniature shows when it is asked for clips that its training held out, and what its autoencoder keeps.

python miniatures/training/measure.py --model wan --out measured.json --picture measured.png

Each held-out combination is generated once, at the larger trained size, from a seed of its own; colour, direction,
shape and background are then told by simple vision (vidaccel_miniatures.adherence). What is done lies beside the
result, in measured.parts, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DEVICE, WEIGHTS, as_video
from families.base import SMALL
from judging import QUESTIONS, Answer, judge, markdown
from PIL import Image, ImageDraw, ImageFont
from vidaccel.eval.env import provenance
from vidaccel.eval.identity import digest, file_digest, key_of
from vidaccel.eval.record import to_json
from vidaccel.files import write_text
from vidaccel.miniature import load_pipeline

from vidaccel_miniatures import adherence, pieces, scenery
from vidaccel_miniatures.adherence import look
from vidaccel_miniatures.captions import held_out, prompt_for
from vidaccel_miniatures.clips import clip_of, render

SEED, SHOWN, ROWS, LINE = 6_000_000, 5, 12, 16
"""First seed; frames a row of the picture, its rows, and the height of its text."""


def wanted_first() -> list[dict[str, str]]:
    """The held-out combinations, so mixed that the first few have some of everything."""
    order = np.random.default_rng(0).permutation(len(held_out()))
    return [dict(zip(("shape", "color", "direction", "background"), held_out()[i], strict=True)) for i in order]


def vision() -> str:
    """SHA-256 of the sources that say what a clip shows: answers of two of them don't go into one table."""
    return key_of({module.__name__: file_digest(Path(str(module.__file__))) for module in (adherence, pieces, scenery)})


class Measurement:
    """One model under one setting, with a folder of what is done.

    Args:
        folder: the pipeline's, with its generation.json.
        parts: where each answer and strip of frames goes.
        call: arguments that replace the model's own.

    Raises:
        SystemExit: `folder` is no miniature's, or `parts` holds another model's, setting's or vision's measurement.
    """

    def __init__(self, folder: Path, parts: Path, call: dict[str, Any], seed: int) -> None:
        if not (folder / "generation.json").is_file():
            raise SystemExit(f"{folder} is no miniature's folder: it has no generation.json")
        defaults = json.loads((folder / "generation.json").read_text())
        self.call = {key: value for key, value in {**defaults, **call}.items() if key not in ("fps", "prompt")}
        self.folder, self.parts, self.seed = folder, parts, seed
        self.settings = {"digest": digest(str(folder)), "vision": vision(), "seed": seed, "call": self.call}
        self._pipe: Any = None
        self._claim()

    @property
    def pipe(self) -> Any:
        """The pipeline, loaded when it is first needed: a measurement that is done needs none."""
        if self._pipe is None:
            self._pipe = load_pipeline(str(self.folder), torch.float32).to(DEVICE)
            self._pipe.set_progress_bar_config(disable=True)
        return self._pipe

    def answer(self, index: int) -> Answer:
        """Generate a held-out clip and say what it shows."""
        wanted = wanted_first()[index]
        prompt, start = prompt_for(**wanted), time.perf_counter()
        noise = torch.Generator().manual_seed(self.seed + index)
        frames = self.pipe(prompt, generator=noise, output_type="np", **self.call).frames[0]
        seconds, seen = time.perf_counter() - start, look(frames)
        strip = np.concatenate(frames[np.linspace(0, len(frames) - 1, SHOWN).round().astype(int)], axis=1)
        Image.fromarray((strip * 255).round().astype(np.uint8)).save(self.parts / f"clip_{index:02d}.png")
        return {"prompt": prompt, "wanted": wanted, "seen": dataclasses.asdict(seen), "seconds": seconds}

    @torch.no_grad()
    def restored(self, index: int) -> Answer:
        """PSNR in dB of a rendered held-out clip that was encoded and decoded, over all of its values in 0..1."""
        wanted = wanted_first()[index]
        size = (self.call["num_frames"], self.call["height"], self.call["width"])
        clip = render(clip_of(**wanted, seed=self.seed + index), *size)
        video, vae = as_video(clip[None]).to(DEVICE), self.pipe.vae
        decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample
        if decoded.shape != video.shape:
            raise SystemExit(f"a clip of {list(video.shape)} was restored as {list(decoded.shape)}")
        error = (decoded.clamp(-1, 1) - video).div(2).square().mean()
        return {"wanted": wanted, "psnr": float(-10 * torch.log10(error))}

    def kept(self, name: str, make: Callable[[], Answer]) -> Answer:
        """What was made under this name before, else what is made now."""
        path = self.parts / f"{name}.json"
        if not path.exists():
            write_text(path, to_json(make()))
        values: Answer = json.loads(path.read_text())
        return values

    def _claim(self) -> None:
        self.parts.mkdir(parents=True, exist_ok=True)
        path, text = self.parts / "settings.json", to_json(self.settings, indent=1) + "\n"
        if path.exists() and json.loads(path.read_text()) != json.loads(text):
            raise SystemExit(f"{self.parts} holds the measurement of another model or setting, or by another vision: "
                             "choose another --out")
        write_text(path, text)


def picture(parts: Path, answers: list[Answer]) -> Image.Image:
    """A row for each clip: its prompt, what was seen instead, if anything, and five frames at half size."""
    strips = [Image.open(parts / f"clip_{index:02d}.png") for index in range(len(answers))]
    width, height = strips[0].width // 2, strips[0].height // 2
    sheet = Image.new("RGB", (width, len(strips) * (height + LINE)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, (strip, answer) in enumerate(zip(strips, answers, strict=True)):
        top = row * (height + LINE)
        wrong = [f"{q}: {answer['seen'][q]}" for q in QUESTIONS if answer["seen"][q] != answer["wanted"][q]]
        pen.text((1, top + 1), answer["prompt"], fill="black", font=font)
        pen.text((width - 2, top + 1), ", ".join(wrong), fill="#b3261e", font=font, anchor="ra")
        sheet.paste(strip.resize((width, height), Image.Resampling.BOX), (0, top + LINE))
    return sheet


def measure(job: Measurement, count: int, restored: int, name: str) -> tuple[dict[str, Any], list[Answer]]:
    """The result, JSON-ready, and all answers, each printed as it comes."""
    answers = []
    for index in range(count):
        answer = job.kept(f"clip_{index:02d}", lambda index=index: job.answer(index))
        wrong = [f"{q} {answer['seen'][q]}" for q in QUESTIONS if answer["seen"][q] != answer["wanted"][q]]
        print(f"{index + 1} of {count}: {answer['prompt']}: {', '.join(wrong) or 'right'}", flush=True)
        answers.append(answer)
    psnr = [job.kept(f"restored_{index:02d}", lambda index=index: job.restored(index))["psnr"]
            for index in range(restored)]  # fmt: skip
    vae = {"clips": restored, "psnr_mean": statistics.mean(psnr), "psnr_least": min(psnr), "psnr": psnr} if psnr else {}
    seconds = statistics.median(answer["seconds"] for answer in answers)
    return {
        "kind": "adherence", "model": name, **job.settings, **judge(answers), "autoencoder": vae or None,
        "seconds_a_clip": seconds, "answers": answers, **provenance(),
    }, answers  # fmt: skip


def page(result: dict[str, Any], drawn: Path | None) -> str:
    """The result as a page of Markdown, with the picture if one is drawn beside it."""
    title = f"# What the miniature {result['model']} shows when asked for held-out combinations"
    vae = result["autoencoder"]
    kept = f"Its autoencoder restores {vae['clips']} of these clips at {vae['psnr_mean']:.1f} dB." if vae else ""
    steps = result["call"]["num_inference_steps"]
    made = f"{steps} steps a clip, seeds from {result['seed']} on; made by `miniatures/training/measure.py`."
    image = f"![Five frames of each clip, what was asked, in red what was seen instead]({drawn.name})" if drawn else ""
    return "\n\n".join(part for part in (title, made, kept, markdown(result), image) if part) + "\n"


def counted(least: int) -> Callable[[str], int]:
    """Reads a number of clips from `least` to as many as are held out."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= len(held_out()):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of clips from {least} to {len(held_out())}")
        return int(text)

    return read


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a miniature's name, or a folder as export.py writes it")
    parser.add_argument("--count", type=counted(1), default=len(held_out()), help="clips to generate")
    parser.add_argument("--restored", type=counted(0), default=8, help="clips for the autoencoder")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--small", action="store_true", help="the smaller trained size")
    parser.add_argument("--steps", type=int, help="instead of the model's own")
    parser.add_argument("--guidance", type=float, help="instead of the model's own")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--picture", type=Path, help="write a picture of the first clips here")
    options = parser.parse_args(arguments)
    call = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    call = {key: value for key, value in call.items() if value is not None}
    call |= {"height": SMALL[0], "width": SMALL[1]} if options.small else {}
    own = WEIGHTS / options.model
    folder = own if own.is_dir() else Path(options.model)
    job = Measurement(folder, options.out.with_suffix(".parts"), call, options.seed)
    result, answers = measure(job, options.count, options.restored, Path(options.model).name)
    write_text(options.out, to_json(result, indent=1) + "\n")
    write_text(options.out.with_suffix(".md"), page(result, options.picture))
    if options.picture:
        picture(job.parts, answers[:ROWS]).save(options.picture, quality=90, optimize=True)
    print("\n" + markdown(result))
    if vae := result["autoencoder"]:
        print(f"\nautoencoder: {vae['psnr_mean']:.2f} dB on {vae['clips']} clips, the least {vae['psnr_least']:.2f} dB")
    print(f"{result['seconds_a_clip']:.1f} s a clip (median); {options.out}")


if __name__ == "__main__":
    main()
